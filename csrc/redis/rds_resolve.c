#include "rds_resolve.h"

#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define STACK_SIZE ((size_t)512 << 10)

void rds_resolve_release(struct rds_resolve *r)
{
    /* Partner: the same line in the lookup's thread or the asker's. */
    if (r == NULL || atomic_fetch_sub_explicit(&r->refs, 1, memory_order_acq_rel) != 1)
        return;
    if (r->addresses != NULL)
        freeaddrinfo(r->addresses);
    if (r->fd >= 0)
        close(r->fd);
    free(r->host);
    free(r);
}

static void look_up(struct rds_resolve *r, int flags)
{
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC,
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_NUMERICSERV | flags,
    };

    r->gai_error = getaddrinfo(r->host, r->service, &hints, &r->addresses);
}

static void *lookup_main(void *arg)
{
    struct rds_resolve *r = arg;
    const uint64_t one = 1;
    ssize_t n;

    /* By the thread itself: nobody else may touch one that may have ended. */
    (void)pthread_setname_np(pthread_self(), "offloop-dns");
    look_up(r, AI_ADDRCONFIG);
    if (r->gai_error != 0)
        look_up(r, 0); /* loopback only: AI_ADDRCONFIG hides what is there */
    /* Partner: the acquire in rds_resolve_done(). */
    atomic_store_explicit(&r->done, 1, memory_order_release);
    do {
        n = write(r->fd, &one, sizeof one);
    } while (n < 0 && errno == EINTR);
    rds_resolve_release(r);
    return NULL;
}

int rds_resolve_start(const char *host, int port, struct rds_resolve **out)
{
    struct rds_resolve *r = calloc(1, sizeof *r);
    pthread_attr_t attr;
    pthread_t thread;
    int failed, err = RT_ENOMEM;

    if (r == NULL)
        return RT_ENOMEM;
    r->fd = -1;
    atomic_init(&r->refs, 1);
    r->host = strdup(host);
    if (r->host == NULL)
        goto fail;
    snprintf(r->service, sizeof r->service, "%d", port);
    look_up(r, AI_NUMERICHOST);
    if (r->gai_error == 0) {
        atomic_store_explicit(&r->done, 1, memory_order_release);
        *out = r;
        return RT_OK;
    }
    err = RT_ESYS;
    r->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (r->fd < 0)
        goto fail;
    if (pthread_attr_init(&attr) != 0)
        goto fail;
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, STACK_SIZE);
    atomic_fetch_add(&r->refs, 1);
    failed = pthread_create(&thread, &attr, lookup_main, r);
    pthread_attr_destroy(&attr);
    if (failed) {
        atomic_fetch_sub(&r->refs, 1);
        goto fail;
    }
    *out = r;
    return RT_OK;
fail:
    rds_resolve_release(r);
    return err;
}
