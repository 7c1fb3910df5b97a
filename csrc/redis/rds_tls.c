/* What a channel's streams have in common: the context, the session, the gate. */
#include "rds_tls.h"

#include <sched.h>
#include <unistd.h>

#include <openssl/asn1.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#define AGAIN_AFTER RT_SEC     /* so old a doubtful context must be */
#define LAST_WORDS (10 * RT_SEC) /* exit() waits so long for who is inside: it computes */

/* ---- the gate ------------------------------------------------------------ */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic uint32_t inside; /* threads in OpenSSL, for us */
static _Atomic uint32_t over;   /* 1: nobody enters any more */

static void close_gate(void)
{
    uint64_t until = rt_after(rt_now(), LAST_WORDS);

    /* Partner: rds_tls_enter(), which counts itself and then looks. */
    atomic_store(&over, 1);
    while (atomic_load(&inside) != 0 && rt_now() < until)
        sched_yield();
}

/* The threads that were inside are the parent's. */
static void after_fork(void)
{
    atomic_store(&inside, 0);
}

static void make_gate(void)
{
    /* First, so that OpenSSL's own handler is called after ours. */
    (void)OPENSSL_init_ssl(0, NULL);
    (void)atexit(close_gate);
    (void)pthread_atfork(NULL, NULL, after_fork);
}

bool rds_tls_enter(void)
{
    atomic_fetch_add(&inside, 1);
    if (atomic_load(&over) == 0)
        return true;
    atomic_fetch_sub(&inside, 1);
    return false;
}

void rds_tls_leave(void)
{
    atomic_fetch_sub(&inside, 1);
}

/* ---- options ------------------------------------------------------------- */

static bool copy(struct rds_tls *tls, unsigned slot, const void **what, size_t len)
{
    char *to;

    if (*what == NULL)
        return true;
    to = malloc(len + 1);
    if (to == NULL)
        return false;
    memcpy(to, *what, len);
    to[len] = '\0';
    *what = tls->copies[slot] = to;
    return true;
}

static bool copy_text(struct rds_tls *tls, unsigned slot, const char **text)
{
    const void *what = *text;

    if (!copy(tls, slot, &what, *text != NULL ? strlen(*text) : 0))
        return false;
    *text = what;
    return true;
}

int rds_tls_new(const struct rds_tls_options *options, struct rds_tls **out)
{
    struct rds_tls *tls = calloc(1, sizeof *tls);
    struct rds_tls_options *o;

    if (tls == NULL)
        return RT_ENOMEM;
    tls->options = *options;
    o = &tls->options;
    /* Now, by whoever makes a client: a process that ends while its first worker gets
     * here would have no gate to close. */
    (void)pthread_once(&once, make_gate);
    if (pthread_mutex_init(&tls->lock, NULL) != 0) {
        free(tls);
        return RT_ENOMEM;
    }
    if (!copy_text(tls, 0, &o->host) || !copy_text(tls, 1, &o->ciphers) ||
        !copy_text(tls, 2, &o->cert_file) || !copy_text(tls, 3, &o->key_file) ||
        !copy(tls, 4, &o->key_password, o->key_password_len) || !copy_text(tls, 5, &o->ca_file) ||
        !copy_text(tls, 6, &o->ca_path) || !copy_text(tls, 7, &o->system_ca_file) ||
        !copy_text(tls, 8, &o->system_ca_path) || !copy(tls, 9, &o->ca_data, o->ca_data_len)) {
        rds_tls_free(tls);
        return RT_ENOMEM;
    }
    *out = tls;
    return RT_OK;
}

void rds_tls_free(struct rds_tls *tls)
{
    unsigned i;

    if (tls == NULL)
        return;
    if (tls->method != NULL && rds_tls_enter()) {
        SSL_SESSION_free(tls->session);
        SSL_CTX_free(tls->context);
        BIO_meth_free(tls->method);
        rds_tls_leave();
    }
    if (tls->copies[4] != NULL)
        explicit_bzero(tls->copies[4], tls->options.key_password_len);
    for (i = 0; i < sizeof tls->copies / sizeof *tls->copies; i++)
        free(tls->copies[i]);
    pthread_mutex_destroy(&tls->lock);
    free(tls);
}

/* ---- reasons ------------------------------------------------------------- */

void rds_tls_reason(char *why, size_t size, unsigned long code)
{
    const char *text = ERR_reason_error_string(code);
    char name[64];
    size_t i;

    if (ERR_GET_LIB(code) == ERR_LIB_SYS) {
        snprintf(why, size, "%s", strerror(ERR_GET_REASON(code)));
    } else if (text == NULL) {
        snprintf(why, size, "OpenSSL's error %lx", code);
    } else if (ERR_GET_LIB(code) != ERR_LIB_SSL) {
        snprintf(why, size, "%s", text);
    } else {
        /* As Python's ssl has it, since people look for these words. */
        snprintf(name, sizeof name, "%s", text);
        for (i = 0; name[i] != '\0'; i++) {
            if (name[i] >= 'a' && name[i] <= 'z')
                name[i] = (char)(name[i] - 'a' + 'A');
            else if (name[i] == ' ')
                name[i] = '_';
        }
        snprintf(why, size, "[SSL: %s] %s", name, text);
    }
}

static bool cannot(char *why, size_t size, const char *what, const char *file)
{
    int len = snprintf(why, size, "cannot use %s%s%.100s", what, *file != '\0' ? " " : "", file);
    char reason[100];

    /* The first of the errors is nearest to the cause. */
    rds_tls_reason(reason, sizeof reason, ERR_peek_error());
    ERR_clear_error();
    snprintf(why + len, size - (size_t)len, ": %s", reason);
    return false;
}

/* ---- the context ---------------------------------------------------------- */

struct asked {
    const struct rds_tls_options *options;
    bool in_vain;
};

/* OpenSSL asks for the key's password. */
static int give_password(char *buf, int size, int writing, void *user)
{
    struct asked *asked = user;
    const struct rds_tls_options *o = asked->options;

    (void)writing;
    asked->in_vain = o->key_password == NULL;
    if (o->key_password == NULL || o->key_password_len > (size_t)size)
        return -1; /* not asked for at a terminal, as OpenSSL would */
    memcpy(buf, o->key_password, o->key_password_len);
    return (int)o->key_password_len;
}

static bool use_our_certificate(SSL_CTX *context, const struct rds_tls_options *o, char *why,
                                size_t size)
{
    const char *key = o->key_file != NULL ? o->key_file : o->cert_file;
    struct asked asked = { .options = o };
    bool ok = false;

    if (o->cert_file == NULL)
        return true;
    SSL_CTX_set_default_passwd_cb(context, give_password);
    SSL_CTX_set_default_passwd_cb_userdata(context, &asked);
    if (SSL_CTX_use_certificate_chain_file(context, o->cert_file) != 1)
        (void)cannot(why, size, "ssl_certfile", o->cert_file);
    else if (SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1)
        (void)cannot(why, size, asked.in_vain ? "the encrypted key without ssl_password," : "the key",
                     key);
    else if (SSL_CTX_check_private_key(context) != 1)
        (void)cannot(why, size, "the key", key);
    else
        ok = true;
    SSL_CTX_set_default_passwd_cb_userdata(context, NULL);
    SSL_CTX_set_default_passwd_cb(context, NULL);
    return ok;
}

static int no_password(char *buf, int size, int writing, void *user)
{
    (void)buf;
    (void)size;
    (void)writing;
    (void)user;
    return -1;
}

/* Whether reading PEM stopped because there was no more certificate: other text may
 * be around them.  DER is nothing else, to the last byte. */
static bool no_more_pem(void)
{
    unsigned long code = ERR_peek_last_error();

    return ERR_GET_LIB(code) == ERR_LIB_PEM && ERR_GET_REASON(code) == PEM_R_NO_START_LINE;
}

static bool use_ca_data(SSL_CTX *context, const struct rds_tls_options *o, char *why, size_t size)
{
    X509_STORE *store = SSL_CTX_get_cert_store(context);
    unsigned count = 0;
    bool ok = true;
    X509 *cert;
    BIO *bio;

    if (o->ca_data == NULL)
        return true;
    bio = BIO_new_mem_buf(o->ca_data, (int)o->ca_data_len);
    if (bio == NULL)
        return cannot(why, size, "ssl_ca_data", "");
    while (ok && (o->ca_data_pem || !BIO_eof(bio))) {
        cert = o->ca_data_pem ? PEM_read_bio_X509(bio, NULL, no_password, NULL)
                              : d2i_X509_bio(bio, NULL);
        if (cert == NULL) {
            ok = o->ca_data_pem && no_more_pem();
            break;
        }
        ok = X509_STORE_add_cert(store, cert) == 1;
        X509_free(cert);
        count++;
    }
    ok = ok && count > 0;
    BIO_free(bio);
    if (!ok)
        return cannot(why, size, "ssl_ca_data", "");
    ERR_clear_error();
    return true;
}

static bool use_authorities(SSL_CTX *context, const struct rds_tls_options *o, char *why,
                            size_t size)
{
    /* What the system has is no error of the user's. */
    if (o->verify && (o->system_ca_file != NULL || o->system_ca_path != NULL))
        (void)SSL_CTX_load_verify_locations(context, o->system_ca_file, o->system_ca_path);
    ERR_clear_error();
    if ((o->ca_file != NULL || o->ca_path != NULL) &&
        SSL_CTX_load_verify_locations(context, o->ca_file, o->ca_path) != 1)
        return cannot(why, size, o->ca_file != NULL ? "ssl_ca_certs" : "ssl_ca_path",
                      o->ca_file != NULL ? o->ca_file : o->ca_path);
    return use_ca_data(context, o, why, size);
}

/* The server has sent a ticket, or the handshake of TLS 1.2 is over. */
static int keep_session(SSL *ssl, SSL_SESSION *session)
{
    struct rds_tls *tls = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
    SSL_SESSION *mine, *unused;

    if ((tls->options.verify && SSL_get_verify_result(ssl) != X509_V_OK) ||
        !SSL_SESSION_is_resumable(session))
        return 0;
    mine = unused = SSL_SESSION_dup(session);
    pthread_mutex_lock(&tls->lock);
    /* Not one of a context that is not trusted any more. */
    if (mine != NULL && SSL_get_SSL_CTX(ssl) == tls->context && !tls->doubtful) {
        unused = tls->session;
        tls->session = mine;
    }
    pthread_mutex_unlock(&tls->lock);
    SSL_SESSION_free(unused);
    return 0; /* the caller's reference stays the caller's */
}

static bool configure(SSL_CTX *context, const struct rds_tls_options *o, char *why, size_t size)
{
    X509_VERIFY_PARAM *param = SSL_CTX_get0_param(context);

    (void)SSL_CTX_set_options(context, o->options);
    (void)SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE |
                                        SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                        SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_read_ahead(context, 1); /* one recv a record or more, not two */
    (void)SSL_CTX_set_session_cache_mode(context,
                                         SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context, keep_session);
    SSL_CTX_set_verify(context, o->verify ? SSL_VERIFY_PEER : SSL_VERIFY_NONE, NULL);
    (void)X509_VERIFY_PARAM_clear_flags(param, X509_VERIFY_PARAM_get_flags(param));
    (void)X509_VERIFY_PARAM_set_flags(param, (unsigned long)o->verify_flags);
    X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    if (o->security_level >= 0)
        SSL_CTX_set_security_level(context, o->security_level);
    if (SSL_CTX_set_min_proto_version(context, o->min_version) != 1 ||
        SSL_CTX_set_max_proto_version(context, o->max_version) != 1)
        return cannot(why, size, "ssl_min_version", "");
    if (o->ciphers != NULL && SSL_CTX_set_cipher_list(context, o->ciphers) != 1)
        return cannot(why, size, "ssl_ciphers", "");
    return use_our_certificate(context, o, why, size) && use_authorities(context, o, why, size);
}

/* A new context.  Outside the lock: it reads files. */
static SSL_CTX *make_context(struct rds_tls *tls, char *why, size_t size)
{
    SSL_CTX *context;

    ERR_clear_error();
    context = SSL_CTX_new(TLS_client_method());
    if (context == NULL) {
        (void)cannot(why, size, "OpenSSL", "");
        return NULL;
    }
    SSL_CTX_set_app_data(context, tls);
    if (configure(context, &tls->options, why, size))
        return context;
    SSL_CTX_free(context);
    return NULL;
}

/* The same, put in place of the old one, by the only worker that is at it. */
static int renew(struct rds_tls *tls, SSL_CTX **context, char *why, size_t size)
{
    SSL_CTX *fresh = NULL;

    if (tls->method == NULL)
        tls->method = rds_stream_method();
    if (tls->method == NULL)
        snprintf(why, size, "no memory for a TLS context");
    else
        fresh = make_context(tls, why, size);
    if (fresh != NULL)
        (void)SSL_CTX_up_ref(fresh); /* the caller's */
    pthread_mutex_lock(&tls->lock);
    tls->making = tls->doubtful = false;
    tls->made_at = rt_now();
    tls->context = *context = fresh;
    pthread_mutex_unlock(&tls->lock);
    return fresh != NULL ? RT_OK : RT_ETLS;
}

int rds_tls_take(struct rds_tls *tls, SSL_CTX **context, SSL_SESSION **session, char *why,
                 size_t size)
{
    SSL_CTX *old;
    SSL_SESSION *old_session;

    *context = NULL;
    *session = NULL;
    pthread_mutex_lock(&tls->lock);
    if (tls->making) {
        pthread_mutex_unlock(&tls->lock);
        return RT_EBUSY;
    }
    if (tls->context != NULL && !(tls->doubtful && rt_now() - tls->made_at > AGAIN_AFTER)) {
        *context = tls->context;
        (void)SSL_CTX_up_ref(tls->context);
        *session = tls->session;
        if (tls->session != NULL)
            (void)SSL_SESSION_up_ref(tls->session);
        pthread_mutex_unlock(&tls->lock);
        return RT_OK;
    }
    tls->making = true;
    old = tls->context;
    old_session = tls->session;
    tls->context = NULL;
    tls->session = NULL;
    pthread_mutex_unlock(&tls->lock);
    SSL_SESSION_free(old_session);
    SSL_CTX_free(old);
    return renew(tls, context, why, size);
}

void rds_tls_doubt(struct rds_tls *tls)
{
    SSL_SESSION *session;

    if (!rds_tls_enter())
        return;
    pthread_mutex_lock(&tls->lock);
    tls->doubtful = true;
    session = tls->session;
    tls->session = NULL;
    pthread_mutex_unlock(&tls->lock);
    SSL_SESSION_free(session);
    rds_tls_leave();
}
