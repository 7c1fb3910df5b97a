#include "tlsfront.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#define DAY (24 * 3600)
#define CHUNK ((size_t)16 << 10)

static void need(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "the front: %s: %s\n", what, strerror(errno));
    ERR_print_errors_fp(stderr);
    _exit(1);
}

/* ---- certificates ----------------------------------------------------------------- */

static EVP_PKEY *new_key(void)
{
    EVP_PKEY_CTX *make = EVP_PKEY_CTX_new_id(EVP_PKEY_EC, NULL);
    EVP_PKEY *key = NULL;

    need(make != NULL && EVP_PKEY_keygen_init(make) == 1 &&
             EVP_PKEY_CTX_set_ec_paramgen_curve_nid(make, NID_X9_62_prime256v1) == 1 &&
             EVP_PKEY_keygen(make, &key) == 1,
         "a key");
    EVP_PKEY_CTX_free(make);
    return key;
}

static void extend(X509 *cert, int nid, const char *value)
{
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, NULL, nid, value);

    need(extension != NULL && X509_add_ext(cert, extension, -1) == 1, value);
    X509_EXTENSION_free(extension);
}

static X509 *new_cert(const char *name, EVP_PKEY *key, X509 *issuer, EVP_PKEY *signer,
                      const char *names, bool expired)
{
    static atomic_int serial = 1;
    X509 *cert = X509_new();
    X509_NAME *subject;

    need(cert != NULL, "a certificate");
    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), atomic_fetch_add(&serial, 1));
    X509_gmtime_adj(X509_getm_notBefore(cert), -2 * DAY);
    X509_gmtime_adj(X509_getm_notAfter(cert), expired ? -DAY : 2 * DAY);
    X509_set_pubkey(cert, key);
    subject = X509_get_subject_name(cert);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
    X509_set_issuer_name(cert, issuer != NULL ? X509_get_subject_name(issuer) : subject);
    if (issuer == NULL)
        extend(cert, NID_basic_constraints, "critical,CA:true");
    if (names != NULL)
        extend(cert, NID_subject_alt_name, names);
    need(X509_sign(cert, signer, EVP_sha256()) > 0, "signing");
    return cert;
}

static char *pem_of(X509 *cert)
{
    BIO *bio = BIO_new(BIO_s_mem());
    char *data, *copy;
    long len;

    need(bio != NULL && PEM_write_bio_X509(bio, cert) == 1, "PEM");
    len = BIO_get_mem_data(bio, &data);
    copy = calloc(1, (size_t)len + 1);
    need(copy != NULL, "memory");
    memcpy(copy, data, (size_t)len);
    BIO_free(bio);
    return copy;
}

static void make_context(struct front *front)
{
    const struct front_options *o = &front->options;
    EVP_PKEY *ca_key = new_key(), *key = new_key();
    X509 *ca = new_cert("an authority", ca_key, NULL, ca_key, NULL, false);
    X509 *cert = new_cert("the front", key, ca, ca_key,
                          o->names != NULL ? o->names : "DNS:localhost,IP:127.0.0.1", o->expired);
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());

    need(context != NULL && SSL_CTX_use_certificate(context, cert) == 1 &&
             SSL_CTX_use_PrivateKey(context, key) == 1,
         "the context");
    if (o->version != 0) {
        SSL_CTX_set_min_proto_version(context, o->version);
        SSL_CTX_set_max_proto_version(context, o->version);
    }
    SSL_CTX_set_session_id_context(context, (const unsigned char *)"front", 5);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (o->asks_client)
        SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    if (o->fragment != 0)
        SSL_CTX_set_max_send_fragment(context, o->fragment);
    SSL_CTX_free(front->context);
    front->context = context;
    if (!o->strange) {
        free(front->ca_pem);
        front->ca_pem = pem_of(ca);
    }
    X509_free(cert);
    X509_free(ca);
    EVP_PKEY_free(key);
    EVP_PKEY_free(ca_key);
}

/* ---- one connection ----------------------------------------------------------------- */

struct pipe {
    char data[CHUNK];
    size_t at, end;
};

struct peer_thread {
    struct front *front;
    int client, server;
    unsigned cuts;     /* of the front's when it began */
    SSL *ssl;
    struct pipe up, down;
    bool wants_read, wants_write;
    bool writing;      /* a write is to be repeated */
    uint64_t since;    /* bytes down since the last new keys */
    uint64_t left;     /* bytes down until it is cut */
};

static bool would_block(void)
{
    return errno == EAGAIN || errno == EINTR;
}

/* What SSL_get_error() says of a call that did nothing: go on, or end. */
static bool waits(struct peer_thread *p, int result)
{
    int kind = SSL_get_error(p->ssl, result);
    const char *reason = ERR_reason_error_string(ERR_peek_error());

    p->wants_read = kind == SSL_ERROR_WANT_READ;
    p->wants_write = kind == SSL_ERROR_WANT_WRITE;
    if (kind == SSL_ERROR_SSL || kind == SSL_ERROR_SYSCALL) /* shown where a test fails */
        fprintf(stderr, "    front: SSL error %d, errno %d, %s\n", kind, errno,
                reason != NULL ? reason : "no reason");
    return p->wants_read || p->wants_write;
}

static bool read_client(struct peer_thread *p)
{
    size_t n = 0;
    int result;

    if (p->up.at < p->up.end)
        return true;
    ERR_clear_error();
    result = SSL_read_ex(p->ssl, p->up.data, CHUNK, &n);
    p->up.at = 0;
    p->up.end = n;
    if (result == 1)
        return true;
    if (SSL_get_error(p->ssl, result) == SSL_ERROR_ZERO_RETURN)
        atomic_fetch_add(&p->front->farewells, 1);
    return waits(p, result);
}

/* New keys, or a new handshake, if it is time. */
static bool stir(struct peer_thread *p)
{
    struct front *front = p->front;

    if (p->writing)
        return true;
    if (front->options.rekey_every != 0 && p->since >= front->options.rekey_every) {
        p->since = 0;
        atomic_fetch_add(&front->rekeys, 1);
        return SSL_key_update(p->ssl, SSL_KEY_UPDATE_REQUESTED) == 1;
    }
    if (front->options.renegotiate_every != 0 && p->since >= front->options.renegotiate_every &&
        !SSL_renegotiate_pending(p->ssl)) {
        int result;

        p->since = 0;
        atomic_fetch_add(&front->renegotiations, 1);
        need(SSL_renegotiate(p->ssl) == 1, "renegotiate");
        ERR_clear_error(); /* or SSL_get_error() may tell of an older one */
        result = SSL_do_handshake(p->ssl);
        return result == 1 || waits(p, result);
    }
    return true;
}

static bool write_client(struct peer_thread *p)
{
    size_t n = 0;
    int result;

    if (p->down.at == p->down.end || (SSL_in_init(p->ssl) && !p->writing))
        return true; /* a handshake is driven by reads */
    ERR_clear_error();
    result = SSL_write_ex(p->ssl, p->down.data + p->down.at, p->down.end - p->down.at, &n);
    p->writing = result != 1;
    if (result != 1)
        return waits(p, result);
    p->down.at += n;
    p->since += n;
    p->left = p->left > n ? p->left - n : 0;
    return stir(p);
}

static bool read_server(struct peer_thread *p)
{
    ssize_t n;

    if (p->down.at < p->down.end)
        return true;
    n = recv(p->server, p->down.data, CHUNK, MSG_DONTWAIT);
    if (n < 0)
        return would_block();
    p->down.at = 0;
    p->down.end = (size_t)n;
    return n > 0;
}

static bool write_server(struct peer_thread *p)
{
    ssize_t n;

    if (p->up.at == p->up.end)
        return true;
    n = send(p->server, p->up.data + p->up.at, p->up.end - p->up.at, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0)
        return would_block();
    p->up.at += (size_t)n;
    return true;
}

/* Whether to read what the client says.  Not while a write is to be repeated where there
 * are new handshakes: OpenSSL would begin one in the middle of the record ("bad length"). */
static bool listens(const struct peer_thread *p, bool deaf)
{
    if (p->writing && p->front->options.renegotiate_every != 0)
        return false;
    return !deaf || SSL_in_init(p->ssl);
}

static bool sleep_until_ready(struct peer_thread *p, bool deaf)
{
    struct pollfd fds[2] = { { .fd = p->client }, { .fd = p->server } };
    bool idle = p->up.at == p->up.end;
    /* Records that OpenSSL holds already are no event, nor is what can be written. */
    bool hears = listens(p, deaf);
    bool at_once = (hears && !deaf && idle && SSL_has_pending(p->ssl)) ||
                   (p->down.at < p->down.end && !p->wants_write && !SSL_in_init(p->ssl));

    if (hears && ((idle && !deaf) || (p->wants_read && SSL_in_init(p->ssl))))
        fds[0].events |= POLLIN;
    if (p->wants_write)
        fds[0].events |= POLLOUT;
    if (!idle)
        fds[1].events |= POLLOUT;
    if (p->down.at == p->down.end)
        fds[1].events |= POLLIN;
    return poll(fds, 2, at_once ? 0 : 5) >= 0 || errno == EINTR;
}

static bool is_cut(const struct peer_thread *p)
{
    return p->left == 0 || atomic_load(&p->front->cuts) != p->cuts;
}

static void pump(struct peer_thread *p)
{
    struct front *front = p->front;

    while (!atomic_load(&front->stopping) && !is_cut(p)) {
        bool deaf = atomic_load(&front->deaf);

        p->wants_read = p->wants_write = false;
        if ((listens(p, deaf) && !read_client(p)) || !write_server(p) ||
            !read_server(p) || !write_client(p) || !sleep_until_ready(p, deaf))
            return;
    }
}

static bool shake_hands(struct peer_thread *p)
{
    int result;

    while (!atomic_load(&p->front->stopping)) {
        struct pollfd fd = { .fd = p->client };

        ERR_clear_error();
        result = SSL_do_handshake(p->ssl);
        if (result == 1)
            return true;
        if (!waits(p, result))
            return false;
        fd.events = p->wants_write ? POLLOUT : POLLIN;
        (void)poll(&fd, 1, 20);
    }
    return false;
}

static bool dial(struct peer_thread *p)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };

    snprintf(un.sun_path, sizeof un.sun_path, "%s", p->front->backend);
    p->server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return p->server >= 0 && connect(p->server, (struct sockaddr *)&un, sizeof un) == 0;
}

static void sit(struct peer_thread *p)
{
    static const char text[] = "-ERR unknown command\r\n";
    struct pollfd hello = { .fd = p->client, .events = POLLIN };
    char waste[4096];

    if (p->front->options.ends)
        return;
    if (p->front->options.is_plain && poll(&hello, 1, 60000) == 1 && recv(p->client, waste, sizeof waste, 0) > 0)
        (void)send(p->client, text, sizeof text - 1, MSG_NOSIGNAL);
    while (!atomic_load(&p->front->stopping)) {
        struct pollfd fd = { .fd = p->client, .events = POLLRDHUP };

        if (poll(&fd, 1, 5) > 0)
            return;
    }
}

static void *serve_one(void *arg)
{
    struct peer_thread *p = arg;
    struct front *front = p->front;
    sigset_t pipe;
    int on = 1;

    /* OpenSSL's own way to write raises it. Not blocked elsewhere: what is tested must not. */
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, NULL);
    (void)setsockopt(p->client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (front->options.stalls || front->options.is_plain || front->options.ends) {
        sit(p);
        goto out;
    }
    p->ssl = SSL_new(front->context);
    need(p->ssl != NULL && SSL_set_fd(p->ssl, p->client) == 1, "a stream");
    SSL_set_accept_state(p->ssl);
    if (!shake_hands(p))
        goto out;
    atomic_fetch_add(&front->handshakes, 1);
    atomic_fetch_add(&front->resumed, SSL_session_reused(p->ssl) == 1);
    if (dial(p))
        pump(p);
    if (is_cut(p)) {
        struct linger now = { .l_onoff = 1 };

        (void)setsockopt(p->client, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }
out:
    SSL_free(p->ssl);
    close(p->client);
    if (p->server >= 0)
        close(p->server);
    free(p);
    ERR_clear_error();
    atomic_fetch_sub(&front->live, 1);
    return NULL;
}

static void *accept_all(void *arg)
{
    struct front *front = arg;
    struct pollfd fds[2] = { { .fd = front->listener, .events = POLLIN },
                             { .fd = front->bell, .events = POLLIN } };
    pthread_attr_t detached;
    pthread_t thread;

    need(pthread_attr_init(&detached) == 0 &&
             pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED) == 0,
         "attributes");
    while (poll(fds, 2, -1) >= 0 && fds[1].revents == 0) {
        int fd = accept4(front->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        struct peer_thread *p;

        if (fd < 0)
            continue;
        p = calloc(1, sizeof *p);
        need(p != NULL, "memory");
        p->front = front;
        p->client = fd;
        p->server = -1;
        p->cuts = atomic_load(&front->cuts);
        p->left = front->options.cut_after == 0
                      ? UINT64_MAX
                      : front->options.cut_after * (1 + atomic_load(&front->accepted) % 4);
        atomic_fetch_add(&front->accepted, 1);
        atomic_fetch_add(&front->live, 1);
        need(pthread_create(&thread, &detached, serve_one, p) == 0, "thread");
    }
    pthread_attr_destroy(&detached);
    return NULL;
}

/* ---- life ----------------------------------------------------------------------------- */

static void begin(struct front *front)
{
    struct sockaddr_in in = { .sin_family = AF_INET };
    socklen_t len = sizeof in;
    int on = 1;

    make_context(front);
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    in.sin_port = htons((uint16_t)front->port);
    front->bell = eventfd(0, EFD_CLOEXEC);
    front->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    need(front->bell >= 0 && front->listener >= 0, "descriptors");
    need(setsockopt(front->listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0, "reuse");
    need(bind(front->listener, (struct sockaddr *)&in, sizeof in) == 0, "bind");
    need(getsockname(front->listener, (struct sockaddr *)&in, &len) == 0, "name");
    front->port = ntohs(in.sin_port);
    need(listen(front->listener, 512) == 0, "listen");
    atomic_store(&front->stopping, false);
    need(pthread_create(&front->acceptor, NULL, accept_all, front) == 0, "thread");
}

void front_quiet(struct front *front)
{
    const uint64_t one = 1;

    atomic_store(&front->stopping, true);
    need(write(front->bell, &one, sizeof one) == sizeof one, "bell");
    pthread_join(front->acceptor, NULL);
    while (atomic_load(&front->live) != 0)
        (void)poll(NULL, 0, 1);
}

static void end(struct front *front)
{
    front_quiet(front);
    close(front->listener);
    close(front->bell);
}

void front_start(struct front *front, const struct front_options *options, const char *backend)
{
    memset(front, 0, sizeof *front);
    front->options = *options;
    need(strlen(backend) < sizeof front->backend, "the path is too long");
    memcpy(front->backend, backend, strlen(backend) + 1);
    begin(front);
}

void front_change(struct front *front, const struct front_options *options)
{
    end(front);
    front->options = *options;
    begin(front);
}

void front_stop(struct front *front)
{
    end(front);
    SSL_CTX_free(front->context);
    free(front->ca_pem);
}
