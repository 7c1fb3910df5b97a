/* A server in a thread of the test: it reads commands and answers whatever the
 * test wants, which a real server never would.
 *
 * It serves one connection after the other, on a Unix socket or on a TCP port of
 * its own. `serve` is called for each with the count of those before it, and
 * the connection is closed when it returns. Its reads give up when the server is
 * stopped, so that a test never hangs in here. */
#ifndef FAKESERVER_H
#define FAKESERVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FAKE_WORDS 8

struct fake;

struct peer {
    struct fake *fake;
    int fd;
    unsigned nth;             /* connections before this one */
    char *buf;                /* what was read and not used yet */
    size_t len, cap;
    char *words[FAKE_WORDS];  /* of the last command, terminated */
    size_t lens[FAKE_WORDS];
    int count;                /* words of it, kept or not */
};

typedef void fake_serve(struct peer *peer, void *user);

struct fake {
    char folder[32], path[40];
    int port;                 /* TCP, or 0 */
    int listener, bell;
    fake_serve *serve;
    void *user;
    atomic_bool stopping;
    atomic_uint connections;  /* accepted so far */
    pthread_t thread;
};

/* Start it: on a Unix socket at fake->path, or with tcp on 127.0.0.1. */
void fake_start(struct fake *fake, bool tcp, fake_serve *serve, void *user);
void fake_stop(struct fake *fake);

/* Stop listening, or listen again at the same place. Thread: the server's. */
void fake_deaf(struct fake *fake);
void fake_listen(struct fake *fake);

/* Read the next command into peer->words. False: the peer closed, or the server
 * stops. */
bool peer_command(struct peer *peer);

/* Wait until there is something to read (or the end of it), for ms at most. */
bool peer_waits(struct peer *peer, int ms);

/* Stay until the peer closes or the server stops, reading nothing. */
void peer_sit(struct peer *peer);

/* Write everything; false when the peer is gone. */
bool peer_write(struct peer *peer, const void *data, size_t len);
bool peer_say(struct peer *peer, const char *text);

/* Answer ECHO with its word and anything else with +OK. */
bool peer_answer(struct peer *peer);

/* Serve like that until the end. */
void serve_normally(struct peer *peer, void *user);

#endif
