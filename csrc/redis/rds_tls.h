/* TLS: how a channel's connections are encrypted, and one such connection.
 *
 * hiredis has a TLS part; this does not use it, since it neither checks the host's
 * name nor bears with a write that is half done.  What is here is OpenSSL on a
 * non-blocking socket:
 *
 *   struct rds_tls     one for each channel: the options, the context that is made
 *                      of them at the first connection, the last session
 *   struct rds_stream  one for each connection: handshake, read, write, close
 *
 * Threads.  An rds_tls is shared by all workers: a context is only read once it is
 * made, which OpenSSL allows, and what changes is under a lock that is held for
 * microseconds.  Making a context reads files and may take long (the system's
 * certificates: 50 ms), so one worker does it, outside the lock, and the others
 * come back later.  A stream belongs to whoever holds its connection.
 *
 * Sessions.  The server's last ticket is kept as a copy that no connection uses,
 * and each connection is given a copy of that: so no two threads ever write to one
 * session.  Only sessions whose certificate was verified as configured are kept.
 * A context whose handshake has failed is made anew for the next try, from the
 * files as they are then, and the session is dropped with it.
 *
 * The end of the process.  OpenSSL frees what all its objects rest on when exit()
 * runs, and workers are not joined by then.  So every call into it passes a gate,
 * which exit() closes first, when nobody is inside: from then on streams stand
 * still (rds_tls_enter()).
 *
 * Fork.  A child touches nothing of its parent's streams: it closes its copies of
 * the sockets, and sends nothing. */
#ifndef RDS_TLS_H
#define RDS_TLS_H

#include <pthread.h>
#include <sys/types.h>

#include <openssl/ssl.h>

#include "../runtime/rt_base.h"
#include "../runtime/rt_err.h"

struct rds_tls_options {
    const char *host;  /* the name or address that the server is asked for */
    bool check_host;   /* its certificate must be for host */
    bool verify;       /* its certificate must be valid */
    uint64_t verify_flags;     /* X509_V_FLAG_*, as they are to be */
    uint64_t options;          /* SSL_OP_*, to be added */
    int min_version, max_version; /* TLS1_2_VERSION ..., 0: OpenSSL's limit */
    int security_level;        /* -1: OpenSSL's */
    const char *ciphers;       /* up to TLS 1.2; NULL: OpenSSL's */
    const char *cert_file;     /* ours, or NULL */
    const char *key_file;      /* NULL: it is in cert_file */
    const void *key_password;  /* NULL: it is not encrypted */
    size_t key_password_len;
    const char *ca_file, *ca_path;           /* who may sign, or NULL */
    const char *system_ca_file, *system_ca_path; /* the same; what is not there is left out */
    const void *ca_data;       /* the same, or NULL */
    size_t ca_data_len;
    bool ca_data_pem;          /* PEM, otherwise DER */
};

struct rds_tls {
    struct rds_tls_options options; /* with copies */
    void *copies[10];
    BIO_METHOD *method;   /* of the streams' sockets; made with the first context */
    pthread_mutex_t lock; /* of what follows; held for microseconds */
    SSL_CTX *context;
    SSL_SESSION *session; /* never given to a connection: see above */
    uint64_t made_at;
    bool making;          /* a worker is at it, outside the lock */
    bool doubtful;        /* a handshake has failed */
};

/* The result of a step. */
enum rds_stream_step { RDS_STREAM_DONE, RDS_STREAM_WAITS, RDS_STREAM_FAILED };

struct rds_stream {
    SSL *ssl;
    struct rds_tls *tls;
    int fd;
    int error;          /* errno of the last send or recv that failed, or 0 */
    bool drained;       /* the last recv brought less than asked for */
    bool ended;         /* the peer has closed its side */
    bool gone;          /* a send has failed: a recv tells the reason */
    bool broken;        /* OpenSSL has given up: nothing may be sent any more */
    bool refused;       /* ... because of what the peer said, or is */
    char *unsent;       /* what the socket did not take, or NULL */
    size_t unsent_at, unsent_end;
    size_t held;        /* bytes of the caller's in there, which he does not know of */
    bool writer_reads;  /* a write has to wait for what a read brings */
    bool write_again;   /* ... and need not wait any more; the caller clears it */
    char why[240];      /* for the person, once it has failed */
};

/* 0 or RT_ENOMEM.  The options are copied; the password is wiped with them.
 * Thread: any.  Blocks: no. */
int rds_tls_new(const struct rds_tls_options *options, struct rds_tls **out);
void rds_tls_free(struct rds_tls *tls);

/* Pass the gate of exit().  False: the process ends, and OpenSSL is not to be
 * touched.  Thread: any, after a rds_tls_new().  Blocks: no. */
bool rds_tls_enter(void);
void rds_tls_leave(void);

/* The context, and the last session or NULL, as references of the caller's.
 * 0, RT_EBUSY (another worker is making it) or RT_ETLS with `why`.
 * Thread: worker, past the gate.  Blocks: may read files. */
int rds_tls_take(struct rds_tls *tls, SSL_CTX **context, SSL_SESSION **session, char *why,
                 size_t size);

/* A handshake has failed: the context is made anew for the next one. */
void rds_tls_doubt(struct rds_tls *tls);

/* Write what an error code of OpenSSL's means. */
void rds_tls_reason(char *why, size_t size, unsigned long code);

/* ---- rds_stream.c -------------------------------------------------------- */

/* What OpenSSL needs to know of a stream's socket; NULL: no memory. */
BIO_METHOD *rds_stream_method(void);

/* A stream over a connected socket, whose handshake is to follow.  0; RT_EBUSY:
 * another worker is making the context, come back in some milliseconds; RT_ENOMEM;
 * RT_ETLS: the options cannot be used, and `why` says why.
 * Thread: worker.  Blocks: may read files. */
int rds_stream_new(struct rds_tls *tls, int fd, struct rds_stream **out, char *why, size_t size);

/* Go on with the handshake.  Thread: who holds the connection.  Blocks: no, but
 * may compute for a millisecond. */
enum rds_stream_step rds_stream_handshake(struct rds_stream *stream);

/* Whether the handshake took up an earlier session. */
bool rds_stream_resumed(const struct rds_stream *stream);

/* As recv() and send() on a non-blocking socket, but that 0 means that nothing can
 * be done just now, and -1 that the stream is at its end, for the reason in `why`.
 * A write that was not wholly taken must be repeated with the same bytes first;
 * more may follow them.  Thread: who holds the connection.  Blocks: no. */
ssize_t rds_stream_read(struct rds_stream *stream, char *buf, size_t size);
ssize_t rds_stream_write(struct rds_stream *stream, const char *data, size_t len);

/* Send what was written and the socket has not taken, or what OpenSSL had to answer
 * to the peer.  False: it has to be called again when the socket can be written.
 * Thread: who holds the connection.  Blocks: no. */
bool rds_stream_flush(struct rds_stream *stream);

/* Free it, politely: with a word to the peer, if it can be said.  The socket stays.
 * Thread: who holds the connection.  Blocks: no. */
void rds_stream_free(struct rds_stream *stream);

#endif
