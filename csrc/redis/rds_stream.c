/* A stream: OpenSSL on one non-blocking socket.
 *
 * Sending goes by send(MSG_NOSIGNAL), not by OpenSSL's own socket BIO, whose
 * write() would raise SIGPIPE in a user's thread that writes through.
 *
 * What the socket does not take is kept here (`unsent`), and OpenSSL is told that it
 * was sent: so it never stands in the middle of a record.  Otherwise a peer that
 * wants new keys would have it write while the rest of a record is to come first,
 * which it cannot, and reading would have to wait for writing, which may be waiting
 * for the peer to read.  A record is written only when nothing is unsent, and the
 * caller is told of its bytes when all of it is in the socket: before that the peer
 * cannot read any of them.
 *
 * A handshake in the middle of the stream (TLS 1.2) is driven by reads alone: a
 * write that found itself in one would take the replies that come meanwhile for an
 * error.  So while one is under way a write takes nothing and asks for a read
 * (`writer_reads`). */
#include <errno.h>
#include <sys/socket.h>

#include <openssl/err.h>
#include <openssl/x509v3.h>

#include "rds_tls.h"

#define RECORD ((size_t)SSL3_RT_MAX_PLAIN_LENGTH)
#define UNSENT_MOST ((size_t)256 << 10) /* a record, and answers to the peer's wishes */

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

/* The peer is gone, and may have said why: that is to be read first. */
static void give_up_sending(struct rds_stream *stream, int error)
{
    stream->gone = true;
    stream->error = error;
    free(stream->unsent);
    stream->unsent = NULL;
    stream->unsent_at = stream->unsent_end = 0;
}

/* Send what the socket takes.  Returns the bytes. */
static size_t send_some(struct rds_stream *stream, const char *data, size_t len)
{
    ssize_t n;

    do {
        n = send(stream->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n >= 0)
        return (size_t)n;
    if (errno != EAGAIN && errno != EWOULDBLOCK)
        give_up_sending(stream, errno);
    return 0;
}

/* Keep what was not sent. */
static void keep(struct rds_stream *stream, const char *data, size_t len)
{
    size_t size = stream->unsent_end + len;
    char *bigger = size <= UNSENT_MOST ? realloc(stream->unsent, size) : NULL;

    if (bigger == NULL) {
        /* A peer that has us answer without reading the answers, if it is not that. */
        give_up_sending(stream, size <= UNSENT_MOST ? ENOMEM : ENOBUFS);
        return;
    }
    memcpy(bigger + stream->unsent_end, data, len);
    stream->unsent = bigger;
    stream->unsent_end = size;
}

static int bio_write(BIO *bio, const char *data, int len)
{
    struct rds_stream *stream = BIO_get_data(bio);
    size_t sent = 0;

    BIO_clear_retry_flags(bio);
    if (stream->unsent == NULL && !stream->gone)
        sent = send_some(stream, data, (size_t)len);
    if (sent < (size_t)len && !stream->gone)
        keep(stream, data + sent, (size_t)len - sent);
    return len;
}

/* Send what is unsent.  False: there is something still. */
static bool flush(struct rds_stream *stream)
{
    if (stream->unsent == NULL)
        return true;
    stream->unsent_at += send_some(stream, stream->unsent + stream->unsent_at,
                                   stream->unsent_end - stream->unsent_at);
    if (stream->unsent_at < stream->unsent_end)
        return false;
    free(stream->unsent);
    stream->unsent = NULL;
    stream->unsent_at = stream->unsent_end = 0;
    return true;
}

static long bio_ctrl(BIO *bio, int what, long number, void *pointer)
{
    struct rds_stream *stream = BIO_get_data(bio);

    (void)number;
    (void)pointer;
    if (what == BIO_CTRL_EOF)
        return stream->ended;
    return what == BIO_CTRL_FLUSH;
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
        /* One word, whether it is heard or not; and none behind half a record: its
         * commands were not sent as far as the caller knows, and must not be. */
        if (!stream->broken && stream->unsent == NULL && !stream->gone &&
            !SSL_in_init(stream->ssl))
            (void)SSL_shutdown(stream->ssl);
        /* Otherwise OpenSSL takes the session for a bad one. */
        if (!stream->broken)
            SSL_set_shutdown(stream->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
        SSL_free(stream->ssl);
        ERR_clear_error();
        rds_tls_leave();
    }
    free(stream->unsent);
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
    (void)flush(stream);
    n = SSL_do_handshake(stream->ssl);
    if (n != 1) {
        kind = SSL_get_error(stream->ssl, n);
        if (kind == SSL_ERROR_WANT_READ && !stream->gone) {
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

/* Whether a handshake in the middle of the stream is to be driven by a read. */
static bool reads_first(const struct rds_stream *stream)
{
    return SSL_in_init(stream->ssl) || SSL_renegotiate_pending(stream->ssl);
}

ssize_t rds_stream_read(struct rds_stream *stream, char *buf, size_t size)
{
    size_t got = 0;
    ssize_t result = 0;
    int n, kind;

    stream->drained = true;
    if (!rds_tls_enter())
        return 0;
    ERR_clear_error();
    stream->drained = false;
    n = SSL_read_ex(stream->ssl, buf, size, &got);
    kind = n == 1 ? SSL_ERROR_NONE : SSL_get_error(stream->ssl, n);
    switch (kind) {
    case SSL_ERROR_NONE:
        stream->drained = stream->drained && SSL_has_pending(stream->ssl) == 0;
        result = (ssize_t)got;
        break;
    case SSL_ERROR_WANT_READ:
        if (!stream->gone)
            break;
        fail(stream, SSL_ERROR_SYSCALL);
        result = -1;
        break;
    case SSL_ERROR_ZERO_RETURN:
        stream->ended = true;
        snprintf(stream->why, sizeof stream->why, "the server closed the connection");
        result = -1;
        break;
    default:
        fail(stream, kind);
        result = -1;
        break;
    }
    if (stream->writer_reads && result >= 0 && !reads_first(stream)) {
        stream->writer_reads = false;
        stream->write_again = true;
    }
    rds_tls_leave();
    return result;
}

bool rds_stream_flush(struct rds_stream *stream)
{
    return flush(stream);
}

ssize_t rds_stream_write(struct rds_stream *stream, const char *data, size_t len)
{
    size_t total, took;
    int n, kind;
    bool failed = false;

    stream->writer_reads = stream->gone;
    if (!flush(stream) || stream->gone || !rds_tls_enter())
        return 0;
    total = stream->held; /* the record that was to be sent has been */
    stream->held = 0;
    while (total < len) {
        if (stream->gone || reads_first(stream)) {
            stream->writer_reads = true;
            break;
        }
        ERR_clear_error();
        n = SSL_write_ex(stream->ssl, data + total, len - total < RECORD ? len - total : RECORD,
                         &took);
        if (n == 1) {
            if (stream->unsent != NULL || stream->gone) {
                stream->held = took;
                stream->writer_reads = stream->gone;
                break;
            }
            total += took;
            continue;
        }
        kind = SSL_get_error(stream->ssl, n);
        stream->writer_reads = kind == SSL_ERROR_WANT_READ;
        failed = !stream->writer_reads;
        if (failed)
            fail(stream, kind);
        break;
    }
    rds_tls_leave();
    return total > 0 || !failed ? (ssize_t)total : -1;
}
