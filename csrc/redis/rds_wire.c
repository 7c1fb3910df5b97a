/* The wire: hiredis's reads and writes, on a plain socket and on a stream of TLS.
 *
 * Both tell the exchange what the next edge of the poller can be waited for:
 * conn->readable stays set until a read came back with less than was asked for. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "rds_conn.h"

#define DELAYED_ACK (30 * RT_MS) /* less than the 40 ms after which Linux sends one anyway */

static ssize_t read_socket(redisContext *c, char *buf, size_t cap)
{
    struct rds_conn *conn = c->privdata;
    ssize_t n;

    do {
        n = recv(c->fd, buf, cap, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    conn->last_read = n;
    if (n > 0) {
        /* Fewer bytes than asked for: the socket is drained, and whatever comes
         * later is a new edge.  Not so once the peer has closed: its end of file
         * may have come with the edge that brought these bytes. */
        if ((size_t)n < cap && !conn->hung_up)
            conn->readable = false;
        return n;
    }
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        conn->last_read = 0;
        conn->readable = conn->hung_up = false;
        return 0;
    }
    c->err = n == 0 ? REDIS_ERR_EOF : REDIS_ERR_IO;
    snprintf(c->errstr, sizeof c->errstr, "%s",
             n == 0 ? "the server closed the connection" : strerror(errno));
    return -1;
}

/* The same from a stream of TLS, whose records may be here before they are asked for. */
static ssize_t read_stream(redisContext *c, char *buf, size_t cap)
{
    struct rds_conn *conn = c->privdata;
    struct rds_stream *stream = conn->stream;
    ssize_t n = rds_stream_read(stream, buf, cap);

    conn->last_read = n;
    if (stream->write_again || stream->unsent != NULL) {
        stream->write_again = false;
        rt_source_attend(&conn->source, 0); /* a look writes, or asks for room */
    }
    if (n > 0) {
        if (stream->drained && !conn->hung_up)
            conn->readable = false;
    } else if (n == 0) {
        conn->readable = conn->hung_up = false;
    } else {
        c->err = stream->ended ? REDIS_ERR_EOF : REDIS_ERR_IO;
        snprintf(c->errstr, sizeof c->errstr, "%.127s", stream->why);
    }
    return n;
}

static ssize_t write_stream(redisContext *c)
{
    struct rds_conn *conn = c->privdata;
    struct rds_stream *stream = conn->stream;
    ssize_t n = rds_stream_write(stream, c->obuf, sdslen(c->obuf));

    if (n < 0) {
        c->err = REDIS_ERR_IO;
        snprintf(c->errstr, sizeof c->errstr, "%.127s", stream->why);
    }
    conn->readable |= stream->writer_reads;
    if (stream->gone) {
        conn->hung_up = true;
        rt_source_attend(&conn->source, RT_READABLE); /* a read ends it */
    }
    return n;
}

void rds_wire_heard(struct rds_conn *conn, uint64_t pause)
{
    int off = 0;

    if (pause >= DELAYED_ACK) {
        conn->delays_acks = false; /* the system has given it up */
    } else if (!conn->delays_acks) {
        conn->delays_acks = true;
        (void)setsockopt(conn->ctx->fd, IPPROTO_TCP, TCP_QUICKACK, &off, sizeof off);
    }
}

static ssize_t write_socket(redisContext *c)
{
    struct rds_conn *conn = c->privdata;
    ssize_t n;

    do {
        /* A closed peer must not raise SIGPIPE in whoever writes through. */
        n = send(c->fd, c->obuf, sdslen(c->obuf), MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n >= 0)
        return n;
    if (errno == EAGAIN || errno == EWOULDBLOCK)
        return 0;
    if (rds_conn_state(conn) == RDS_CONN_HANDSHAKE && (errno == EPIPE || errno == ECONNRESET)) {
        /* A server that is full says so and closes: let it be read why. */
        conn->readable = conn->hung_up = true;
        return 0;
    }
    c->err = REDIS_ERR_IO;
    snprintf(c->errstr, sizeof c->errstr, "%s", strerror(errno));
    return -1;
}

void rds_wire_attach(struct rds_conn *conn)
{
    redisContext *c = conn->ctx;

    conn->funcs = *c->funcs;
    conn->funcs.read = conn->stream != NULL ? read_stream : read_socket;
    conn->funcs.write = conn->stream != NULL ? write_stream : write_socket;
    c->funcs = &conn->funcs;
    c->privdata = conn;
}
