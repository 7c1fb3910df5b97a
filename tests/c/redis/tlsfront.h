/* TLS before a server that does not speak it: threads of the test end the encryption
 * and pass the bytes on to a Unix socket, and do on the way whatever the protocol
 * allows and a real server does once in a blue moon.
 *
 * Certificates are made here, by an authority of the front's own. */
#ifndef TLSFRONT_H
#define TLSFRONT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <openssl/ssl.h>

struct front_options {
    int version;            /* the only one, 0: any */
    const char *names;      /* of the certificate: "DNS:x,IP:y"; NULL: what is right */
    bool expired;           /* the certificate is */
    bool strange;           /* it is signed by nobody the client knows */
    bool asks_client;       /* for a certificate, and refuses without one */
    size_t fragment;        /* bytes of a record at most, 0: OpenSSL's */
    uint64_t rekey_every;   /* bytes towards the client: new keys, both ways (TLS 1.3) */
    uint64_t renegotiate_every; /* the same: a new handshake (TLS 1.2) */
    uint64_t cut_after;     /* the same: the connection is cut; the next ones live up to
                               four times as long */
    bool stalls;            /* accepts, and says nothing */
    bool is_plain;          /* answers in clear text */
    bool ends;              /* accepts, and closes */
};

struct front {
    struct front_options options;
    char backend[108];
    int port, listener, bell;
    char *ca_pem;           /* what the client is to trust */
    SSL_CTX *context;
    pthread_t acceptor;
    atomic_uint live;       /* threads with a connection */
    atomic_bool stopping;
    atomic_bool deaf;       /* reads nothing from clients */
    atomic_uint cuts;       /* to cut every connection there is: add one */
    _Atomic uint64_t accepted, handshakes, resumed, farewells, rekeys, renegotiations;
};

/* Listen on 127.0.0.1, before the server at the Unix socket. */
void front_start(struct front *front, const struct front_options *options, const char *backend);

/* Begin anew at the same port, with other options and a new authority. */
void front_change(struct front *front, const struct front_options *options);
void front_stop(struct front *front);

/* End its threads, and leave the rest. */
void front_quiet(struct front *front);

#endif
