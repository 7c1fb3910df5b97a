#include "fakeserver.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void need(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "the fake server: %s: %s\n", what, strerror(errno));
    _exit(1);
}

void fake_listen(struct fake *fake)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    struct sockaddr_in in = { .sin_family = AF_INET };
    socklen_t len = sizeof in;
    int on = 1;

    if (fake->port != 0) {
        in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        in.sin_port = htons((uint16_t)(fake->port > 0 ? fake->port : 0));
        fake->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        need(setsockopt(fake->listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0, "reuse");
        need(bind(fake->listener, (struct sockaddr *)&in, sizeof in) == 0, "bind");
        need(getsockname(fake->listener, (struct sockaddr *)&in, &len) == 0, "name");
        fake->port = ntohs(in.sin_port);
    } else {
        snprintf(un.sun_path, sizeof un.sun_path, "%s", fake->path);
        unlink(un.sun_path);
        fake->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        need(bind(fake->listener, (struct sockaddr *)&un, sizeof un) == 0, "bind");
    }
    need(listen(fake->listener, 64) == 0, "listen");
}

void fake_deaf(struct fake *fake)
{
    if (fake->listener >= 0)
        close(fake->listener);
    fake->listener = -1;
}

/* Whether fd can be read; false when the server stops or ms have passed. */
static bool wait_for(struct fake *fake, int fd, int ms)
{
    struct pollfd p[2] = { { .fd = fake->bell, .events = POLLIN }, { .fd = fd, .events = POLLIN } };

    while (poll(p, 2, ms) < 0)
        need(errno == EINTR, "poll");
    return p[0].revents == 0 && p[1].revents != 0 && !atomic_load(&fake->stopping);
}

static void *fake_main(void *arg)
{
    struct fake *fake = arg;

    while (!atomic_load(&fake->stopping)) {
        struct peer peer = { .fake = fake };

        if (fake->listener < 0)
            fake_listen(fake);
        if (!wait_for(fake, fake->listener, -1))
            break;
        peer.fd = accept4(fake->listener, NULL, NULL, SOCK_CLOEXEC);
        if (peer.fd < 0)
            continue;
        peer.nth = atomic_fetch_add(&fake->connections, 1);
        fake->serve(&peer, fake->user);
        if (peer.fd >= 0)
            close(peer.fd);
        free(peer.buf);
    }
    return NULL;
}

void fake_start(struct fake *fake, bool tcp, fake_serve *serve, void *user)
{
    memset(fake, 0, sizeof *fake);
    fake->serve = serve;
    fake->user = user;
    fake->bell = eventfd(0, EFD_CLOEXEC);
    need(fake->bell >= 0, "eventfd");
    if (tcp) {
        fake->port = -1;
    } else {
        snprintf(fake->folder, sizeof fake->folder, "/tmp/offloop-fake-XXXXXX");
        need(mkdtemp(fake->folder) != NULL, "mkdtemp");
        snprintf(fake->path, sizeof fake->path, "%s/s", fake->folder);
    }
    fake_listen(fake);
    need(pthread_create(&fake->thread, NULL, fake_main, fake) == 0, "thread");
}

void fake_stop(struct fake *fake)
{
    const uint64_t one = 1;

    atomic_store(&fake->stopping, true);
    need(write(fake->bell, &one, sizeof one) == sizeof one, "bell");
    pthread_join(fake->thread, NULL);
    fake_deaf(fake);
    close(fake->bell);
    if (fake->folder[0] != '\0') {
        unlink(fake->path);
        rmdir(fake->folder);
    }
}

/* ---- reading -------------------------------------------------------------------- */

bool peer_waits(struct peer *peer, int ms)
{
    return wait_for(peer->fake, peer->fd, ms);
}

void peer_sit(struct peer *peer)
{
    struct pollfd p[2] = { { .fd = peer->fake->bell, .events = POLLIN },
                           { .fd = peer->fd, .events = POLLRDHUP } };

    while (poll(p, 2, -1) < 0)
        need(errno == EINTR, "poll");
}

static bool more(struct peer *peer)
{
    ssize_t n;

    if (peer->cap - peer->len < 65536) {
        peer->cap = 2 * peer->cap + 131072;
        peer->buf = realloc(peer->buf, peer->cap);
        need(peer->buf != NULL, "memory");
    }
    if (!wait_for(peer->fake, peer->fd, -1))
        return false;
    n = recv(peer->fd, peer->buf + peer->len, peer->cap - peer->len, 0);
    if (n <= 0)
        return false;
    peer->len += (size_t)n;
    return true;
}

/* A line "<mark><number>\r\n" at *at; 0 not all here, else its length. */
static size_t number_line(const struct peer *peer, size_t at, char mark, size_t *value)
{
    const char *end;

    if (at >= peer->len)
        return 0;
    need(peer->buf[at] == mark, "a command is not well formed");
    end = memchr(peer->buf + at, '\n', peer->len - at);
    if (end == NULL)
        return 0;
    *value = strtoull(peer->buf + at + 1, NULL, 10);
    return (size_t)(end - (peer->buf + at)) + 1;
}

/* Bytes of the first command in the buffer, 0 when it is not all here. */
static size_t whole_command(struct peer *peer, size_t starts[FAKE_WORDS])
{
    size_t count, len, at, i, n = number_line(peer, 0, '*', &count);

    if (n == 0)
        return 0;
    for (at = n, i = 0; i < count; i++) {
        n = number_line(peer, at, '$', &len);
        if (n == 0 || peer->len < at + n + len + 2)
            return 0;
        if (i < FAKE_WORDS) {
            starts[i] = at + n;
            peer->lens[i] = len;
        }
        at += n + len + 2;
    }
    peer->count = (int)count;
    return at;
}

bool peer_command(struct peer *peer)
{
    static _Thread_local char words[FAKE_WORDS][256];
    size_t starts[FAKE_WORDS], used;
    int i;

    while ((used = whole_command(peer, starts)) == 0) {
        if (!more(peer))
            return false;
    }
    for (i = 0; i < peer->count && i < FAKE_WORDS; i++) {
        size_t len = peer->lens[i] < 255 ? peer->lens[i] : 255; /* enough to know it */

        memcpy(words[i], peer->buf + starts[i], len);
        words[i][len] = '\0';
        peer->words[i] = words[i];
    }
    peer->len -= used;
    memmove(peer->buf, peer->buf + used, peer->len);
    return true;
}

/* ---- writing ---------------------------------------------------------------------- */

bool peer_write(struct peer *peer, const void *data, size_t len)
{
    const char *p = data;

    while (len > 0) {
        ssize_t n = send(peer->fd, p, len, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            struct pollfd w[2] = { { .fd = peer->fake->bell, .events = POLLIN },
                                   { .fd = peer->fd, .events = POLLOUT } };

            (void)poll(w, 2, -1);
            if (w[0].revents != 0)
                return false;
            continue;
        }
        if (n < 0)
            return false;
        p += n;
        len -= (size_t)n;
    }
    return true;
}

bool peer_say(struct peer *peer, const char *text)
{
    return peer_write(peer, text, strlen(text));
}

bool peer_answer(struct peer *peer)
{
    char text[300];

    if (peer->count < 2 || strcmp(peer->words[0], "ECHO") != 0)
        return peer_say(peer, "+OK\r\n");
    snprintf(text, sizeof text, "$%zu\r\n%s\r\n", strlen(peer->words[1]), peer->words[1]);
    return peer_say(peer, text);
}

void serve_normally(struct peer *peer, void *user)
{
    (void)user;
    while (peer_command(peer) && peer_answer(peer)) {
    }
}
