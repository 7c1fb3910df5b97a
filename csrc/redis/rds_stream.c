/* A stream: OpenSSL on one non-blocking socket.
 *
 * Sending goes by send(MSG_NOSIGNAL), not by OpenSSL's own socket BIO, whose
 * write() would raise SIGPIPE in a user's thread that writes through.
 *
 * In the middle of the stream OpenSSL may have to read in order to write (the
 * server wants to renegotiate) or to write in order to read (it wants new keys).
 * Such a handshake is driven by reads alone: a write that found itself in it would
 * take the replies that come meanwhile for an error.  So while one is under way a
 * write takes nothing and asks for a read (`writer_reads`), and a read that has to
 * write first asks for room in the socket (`reader_writes`). */
#include <errno.h>
#include <sys/socket.h>

#include <openssl/err.h>
#include <openssl/x509v3.h>

#include "rds_tls.h"

#define RECORD ((size_t)SSL3_RT_MAX_PLAIN_LENGTH)

/* ---- the socket ---------------------------------------------------------- */

static int bio_read(BIO *bio, char *buf, int size)
{
    struct rds_stream *stream = BIO_get_data(bio);
    ssize_t n;

    BIO_clear_retry_flags(bio);
    do {
        n = recv(stream->fd, buf, (size_t)size, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    stream->drained = n < size;
    if (n > 0)
        return (int)n;
    if (n == 0) {
        stream->ended = true;
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
        BIO_set_retry_read(bio);
    } else {
        stream->error = errno;
    }
    return n == 0 ? 0 : -1;
}

static int bio_write(BIO *bio, const char *data, int len)
{
    struct rds_stream *stream = BIO_get_data(bio);
    ssize_t n;

    BIO_clear_retry_flags(bio);
    do {
        n = send(stream->fd, data, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n >= 0)
        return (int)n;
    if (errno != EAGAIN && errno != EWOULDBLOCK) {
        /* The peer is gone, and may have said why: that is to be read first. */
        stream->gone = true;
        stream->error = errno;
    }
    BIO_set_retry_write(bio);
    return -1;
}

static long bio_ctrl(BIO *bio, int what, long number, void *pointer)
{
    struct rds_stream *stream = BIO_get_data(bio);

    (void)number;
    (void)pointer;
    if (what == BIO_CTRL_EOF)
        return stream->ended;
    return what == BIO_CTRL_FLUSH; /* nothing is kept here */
}

BIO_METHOD *rds_stream_method(void)
{
    BIO_METHOD *method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "offloop socket");

    if (method != NULL && BIO_meth_set_read(method, bio_read) == 1 &&
        BIO_meth_set_write(method, bio_write) == 1 && BIO_meth_set_ctrl(method, bio_ctrl) == 1)
        return method;
    BIO_meth_free(method);
    return NULL;
}

/* ---- reasons ------------------------------------------------------------- */

/* Why the peer's certificate was not accepted, in the words of Python's ssl. */
static void distrust(struct rds_stream *stream, long result)
{
    const struct rds_tls_options *o = &stream->tls->options;
    const char *kind = result == X509_V_ERR_HOSTNAME_MISMATCH     ? "Hostname"
                       : result == X509_V_ERR_IP_ADDRESS_MISMATCH ? "IP address"
                                                                  : NULL;
    static const char what[] = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed";

    if (kind != NULL)
        snprintf(stream->why, sizeof stream->why,
                 "%s: %s mismatch, certificate is not valid for '%.100s'", what, kind, o->host);
    else
        snprintf(stream->why, sizeof stream->why, "%s: %s", what,
                 X509_verify_cert_error_string(result));
}

/* Whether code says no more than that the peer has closed. */
static bool is_end(unsigned long code)
{
#ifdef SSL_R_UNEXPECTED_EOF_WHILE_READING
    return ERR_GET_LIB(code) == ERR_LIB_SSL &&
           ERR_GET_REASON(code) == SSL_R_UNEXPECTED_EOF_WHILE_READING;
#else
    return code == 0;
#endif
}

/* OpenSSL has given up, or the socket has.  `kind` is of SSL_get_error(). */
static void fail(struct rds_stream *stream, int kind)
{
    /* The last of the errors: before it are those of looking for another way. */
    unsigned long code = ERR_peek_last_error();
    long result = SSL_get_verify_result(stream->ssl);
    size_t len;

    stream->broken = true;
    if (kind != SSL_ERROR_SSL || is_end(code)) {
        snprintf(stream->why, sizeof stream->why, "%s",
                 stream->ended || stream->error == 0 ? "the server closed the connection"
                                                     : strerror(stream->error));
    } else if (ERR_GET_LIB(code) == ERR_LIB_SSL &&
               ERR_GET_REASON(code) == SSL_R_CERTIFICATE_VERIFY_FAILED && result != X509_V_OK) {
        stream->refused = true;
        distrust(stream, result);
    } else {
        stream->refused = true;
        rds_tls_reason(stream->why, sizeof stream->why, code);
        len = strlen(stream->why);
        if (ERR_GET_LIB(code) == ERR_LIB_SSL && ERR_GET_REASON(code) == SSL_R_WRONG_VERSION_NUMBER)
            snprintf(stream->why + len, sizeof stream->why - len, " (is it a port for TLS?)");
    }
    ERR_clear_error(); /* it is Python's as well, in this thread */
}

/* ---- life ---------------------------------------------------------------- */

/* The name that is asked for, and that the certificate must bear. */
static bool name_peer(struct rds_stream *stream)
{
    const struct rds_tls_options *o = &stream->tls->options;
    X509_VERIFY_PARAM *param = SSL_get0_param(stream->ssl);
    ASN1_OCTET_STRING *address = a2i_IPADDRESS(o->host);
    bool ok = true;

    ERR_clear_error(); /* a name is no address */
    if (address == NULL)
        ok = SSL_set_tlsext_host_name(stream->ssl, o->host) == 1;
    if (ok && o->check_host) {
        if (address != NULL)
            ok = X509_VERIFY_PARAM_set1_ip(param, ASN1_STRING_get0_data(address),
                                           (size_t)ASN1_STRING_length(address)) == 1;
        else
            ok = X509_VERIFY_PARAM_set1_host(param, o->host, strlen(o->host)) == 1;
    }
    ASN1_OCTET_STRING_free(address);
    return ok;
}

/* Propose to go on with the last session.  If it cannot be, there is a full
 * handshake. */
static void propose(SSL *ssl, SSL_SESSION *session)
{
    SSL_SESSION *mine = session != NULL ? SSL_SESSION_dup(session) : NULL;

    if (mine != NULL)
        (void)SSL_set_session(ssl, mine);
    SSL_SESSION_free(mine);
    ERR_clear_error();
}

static int build(struct rds_stream *stream, SSL_CTX *context, SSL_SESSION *session, char *why,
                 size_t size)
{
    BIO *bio;

    ERR_clear_error();
    stream->ssl = SSL_new(context);
    bio = stream->ssl != NULL ? BIO_new(stream->tls->method) : NULL;
    if (bio == NULL) {
        ERR_clear_error();
        return RT_ENOMEM;
    }
    BIO_set_data(bio, stream);
    BIO_set_init(bio, 1);
    SSL_set_bio(stream->ssl, bio, bio);
    SSL_set_connect_state(stream->ssl);
    if (!name_peer(stream)) {
        snprintf(why, size, "OpenSSL does not take '%.100s' for the name of a host",
                 stream->tls->options.host);
        ERR_clear_error();
        return RT_ETLS;
    }
    propose(stream->ssl, session);
    return RT_OK;
}

int rds_stream_new(struct rds_tls *tls, int fd, struct rds_stream **out, char *why, size_t size)
{
    struct rds_stream *stream = calloc(1, sizeof *stream);
    SSL_SESSION *session = NULL;
    SSL_CTX *context = NULL;
    int err = RT_ENOMEM;

    *out = NULL;
    if (stream == NULL)
        return RT_ENOMEM;
    stream->tls = tls;
    stream->fd = fd;
    if (!rds_tls_enter()) {
        free(stream);
        return RT_EBUSY; /* the process ends before it matters */
    }
    err = rds_tls_take(tls, &context, &session, why, size);
    if (err == RT_OK)
        err = build(stream, context, session, why, size);
    SSL_SESSION_free(session);
    SSL_CTX_free(context); /* the stream has its own reference */
    if (err != RT_OK)
        SSL_free(stream->ssl);
    rds_tls_leave();
    if (err == RT_OK)
        *out = stream;
    else
        free(stream);
    return err;
}

void rds_stream_free(struct rds_stream *stream)
{
    if (stream == NULL)
        return;
    if (rds_tls_enter()) {
        if (!stream->broken && stream->half_written == 0 && !SSL_in_init(stream->ssl))
            (void)SSL_shutdown(stream->ssl); /* one word, whether it is heard or not */
        /* Otherwise OpenSSL takes the session for a bad one. */
        if (!stream->broken)
            SSL_set_shutdown(stream->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
        SSL_free(stream->ssl);
        ERR_clear_error();
        rds_tls_leave();
    }
    free(stream);
}

/* ---- at work ------------------------------------------------------------- */

enum rds_stream_step rds_stream_handshake(struct rds_stream *stream)
{
    enum rds_stream_step step = RDS_STREAM_DONE;
    int n, kind;

    if (!rds_tls_enter())
        return RDS_STREAM_WAITS;
    ERR_clear_error();
    n = SSL_do_handshake(stream->ssl);
    if (n != 1) {
        kind = SSL_get_error(stream->ssl, n);
        if ((kind == SSL_ERROR_WANT_READ || kind == SSL_ERROR_WANT_WRITE) && !stream->gone) {
            step = RDS_STREAM_WAITS;
        } else {
            fail(stream, kind);
            step = RDS_STREAM_FAILED;
        }
    }
    rds_tls_leave();
    return step;
}

bool rds_stream_resumed(const struct rds_stream *stream)
{
    bool resumed = false;

    if (rds_tls_enter()) {
        resumed = SSL_session_reused(stream->ssl) == 1;
        rds_tls_leave();
    }
    return resumed;
}

bool rds_stream_buffered(const struct rds_stream *stream)
{
    bool buffered = false;

    if (rds_tls_enter()) {
        buffered = SSL_has_pending(stream->ssl) == 1;
        rds_tls_leave();
    }
    return buffered;
}

/* Whether a handshake in the middle of the stream is to be driven by a read. */
static bool reads_first(const struct rds_stream *stream)
{
    return stream->half_written == 0 &&
           (SSL_in_init(stream->ssl) || SSL_renegotiate_pending(stream->ssl));
}

/* Whether a read must not come before the rest of a half-written record.  The peer
 * wants new keys, and OpenSSL answers that after the record, but in the middle of it
 * when a read brings the next such wish. */
static bool writes_first(const struct rds_stream *stream)
{
    return stream->half_written != 0 &&
           SSL_get_key_update_type(stream->ssl) != SSL_KEY_UPDATE_NONE;
}

ssize_t rds_stream_read(struct rds_stream *stream, char *buf, size_t size)
{
    size_t got = 0;
    ssize_t result;
    int n, kind;

    if (!rds_tls_enter()) {
        stream->drained = true;
        return 0;
    }
    if (writes_first(stream)) {
        stream->reader_writes = true;
        rds_tls_leave();
        return 0;
    }
    ERR_clear_error();
    stream->drained = stream->reader_writes = false;
    n = SSL_read_ex(stream->ssl, buf, size, &got);
    if (n == 1) {
        stream->drained = stream->drained && SSL_has_pending(stream->ssl) == 0;
        result = (ssize_t)got;
        goto out;
    }
    kind = SSL_get_error(stream->ssl, n);
    result = 0;
    switch (kind) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        stream->reader_writes = kind == SSL_ERROR_WANT_WRITE;
        if (!stream->gone)
            break;
        fail(stream, SSL_ERROR_SYSCALL);
        result = -1;
        break;
    case SSL_ERROR_ZERO_RETURN:
        snprintf(stream->why, sizeof stream->why, "the server closed the connection");
        result = -1;
        break;
    default:
        fail(stream, kind);
        result = -1;
        break;
    }
out:
    if (stream->writer_reads && !stream->gone && !reads_first(stream)) {
        stream->writer_reads = false;
        stream->write_again = true;
    }
    rds_tls_leave();
    return result;
}

/* One record at a time, and one that is half written as it was: then what OpenSSL
 * has not said to be written can never have reached the peer, who needs the whole of
 * a record to read any of it.  With more it may write a record, begin the next and
 * say no more than that it has to wait. */
ssize_t rds_stream_write(struct rds_stream *stream, const char *data, size_t len)
{
    size_t total = 0, took, want;
    ssize_t result;
    int n, kind;

    if (!rds_tls_enter())
        return 0;
    stream->writer_reads = false;
    result = 0;
    while (total < len) {
        if (stream->gone || reads_first(stream)) {
            stream->writer_reads = true;
            break;
        }
        ERR_clear_error();
        took = 0;
        want = stream->half_written != 0   ? stream->half_written
               : len - total < RECORD ? len - total
                                      : RECORD;
        n = SSL_write_ex(stream->ssl, data + total, want, &took);
        if (n == 1) {
            stream->half_written = 0;
            total += took;
            continue;
        }
        kind = SSL_get_error(stream->ssl, n);
        if (kind == SSL_ERROR_WANT_WRITE) {
            /* Part of a record is in the socket, unless it is a handshake's. */
            stream->half_written = SSL_in_init(stream->ssl) ? 0 : want;
            stream->writer_reads = stream->gone || SSL_in_init(stream->ssl);
        } else if (kind == SSL_ERROR_WANT_READ) {
            stream->writer_reads = true;
        } else {
            fail(stream, kind);
            result = -1;
        }
        break;
    }
    rds_tls_leave();
    return total > 0 ? (ssize_t)total : result;
}
