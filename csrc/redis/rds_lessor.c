/* The lessor: who gets which lease, and who has to wait. */
#include <arpa/inet.h>
#include <stdarg.h>
#include <unistd.h>

#include "rds_lease.h"

#define PACE 256        /* first tries to connect at a time: half a server's backlog */
#define PACE_BY_NAME 4  /* the same while the address is not known: a thread each */
#define GIFTS 64        /* leases given out before others have their turn */
#define ROUNDS 16       /* of serving while others leave notes */

/* Notes besides enum rt_what. */
enum { SWEEP = 1 << 16, DROP_IDLE = 1 << 17, DROP_ALL = 1 << 18, ANSWER = 1 << 19 };

static void handle(struct rt_source *src, uint32_t what, struct rt_worker *worker);

static void destroy(struct rt_source *src)
{
    rds_channel_unref(RT_CONTAINER_OF(src, struct rds_lessor, source)->channel);
}

static bool is_name(const struct rds_options *o)
{
    unsigned char address[sizeof(struct in6_addr)];

    return o->path == NULL && inet_pton(AF_INET, o->host, address) != 1 &&
           inet_pton(AF_INET6, o->host, address) != 1;
}

int rds_lessor_new(struct rds_channel *channel, struct rds_lessor **out)
{
    struct rds_lessor *lessor = calloc(1, sizeof *lessor);

    if (lessor == NULL)
        return RT_ENOMEM;
    lessor->channel = channel;
    lessor->source.handle = handle;
    lessor->source.destroy = destroy;
    lessor->by_name = is_name(&channel->options);
    rt_stack_init(&lessor->inbox);
    rt_stack_init(&lessor->reports);
    rt_joblist_init(&lessor->waiting);
    *out = lessor;
    return RT_OK;
}

void rds_lessor_free(struct rds_lessor *lessor)
{
    if (lessor == NULL)
        return;
    rds_resolve_release(atomic_exchange(&lessor->address, NULL));
    rds_slots_fini(&lessor->slots);
    free(lessor);
}

/* ---- jobs that go home from here ---------------------------------------- */

static void send_home(struct rds_lessor *lessor, struct rt_job *base, int err, const char *format,
                      ...)
{
    char text[320];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    rds_arena_set_text(&rds_job_of(base)->reply, RDS_ERROR, text);
    if (err != RT_ECANCELLED)
        rt_count(&lessor->channel->stats.errors, 1);
    rt_pool_complete(base, err);
}

static void refuse(struct rds_lessor *lessor, struct rt_job *base)
{
    send_home(lessor, base, RT_ECLOSED, "The client is closed: the command was not executed");
}

static void no_room(struct rds_lessor *lessor, struct rt_job *base)
{
    send_home(lessor, base, RT_EFULL,
              "Too many connections to %.120s: all %u of max_connections are in use; the command "
              "was not sent, so it was not executed",
              rds_channel_endpoint(lessor->channel), lessor->channel->options.max_leases);
}

static void waited_enough(struct rds_lessor *lessor, struct rt_job *base)
{
    send_home(lessor, base, RT_ECONNECT,
              "No connection available: all %u of max_connections to %.120s are in use; the "
              "command was not sent, so it was not executed",
              lessor->channel->options.max_leases, rds_channel_endpoint(lessor->channel));
}

/* ---- idle leases -------------------------------------------------------- */

static void list_idle(struct rds_lessor *lessor, struct rds_lease *lease)
{
    lease->older = lessor->newest;
    lease->newer = NULL;
    if (lease->older != NULL)
        lease->older->newer = lease;
    lessor->newest = lease;
    lease->listed = true;
    rt_count_own(&lessor->idle, 1);
}

static void unlist(struct rds_lessor *lessor, struct rds_lease *lease)
{
    if (!lease->listed)
        return;
    if (lease->newer != NULL)
        lease->newer->older = lease->older;
    else
        lessor->newest = lease->older;
    if (lease->older != NULL)
        lease->older->newer = lease->newer;
    lease->older = lease->newer = NULL;
    lease->listed = false;
    rt_count_own(&lessor->idle, (uint64_t)-1);
}

static void drop_if_idle(struct rds_lease *lease)
{
    if (rds_lease_end(lease, RDS_LEASE_IDLE))
        rds_lease_kill(lease);
}

/* An idle lease that is taken from now on, or NULL. */
static struct rds_lease *take_idle(struct rds_lessor *lessor)
{
    uint32_t identity = atomic_load(&lessor->channel->identity);
    struct rds_lease *lease;

    while ((lease = lessor->newest) != NULL) {
        unlist(lessor, lease);
        if (lease->conn.identity != identity) /* logged in as who is not meant any more */
            drop_if_idle(lease);
        else if (rds_lease_move(lease, RDS_LEASE_IDLE, RDS_LEASE_TAKEN))
            return lease;
    }
    return NULL;
}

/* ---- news --------------------------------------------------------------- */

static void stopped_dialing(struct rds_lessor *lessor, struct rds_lease *lease)
{
    if (lease->dialing)
        lessor->dialing--;
    lease->dialing = false;
}

static void take_reports(struct rds_lessor *lessor)
{
    struct rt_node *node = rt_stack_take(&lessor->reports);

    while (node != NULL) {
        struct rds_lease *lease = RT_CONTAINER_OF(node, struct rds_lease, report);

        node = node->next;
        /* Before looking: later news must be pushed again.
         * Partner: the exchange in rds_lease_report(). */
        atomic_store(&lease->reported, 0);
        if (atomic_load(&lease->dialed) != 0)
            stopped_dialing(lessor, lease);
        switch ((enum rds_lease_state)atomic_load(&lease->state)) {
        case RDS_LEASE_TAKEN:
        case RDS_LEASE_SPARE:
            break;
        case RDS_LEASE_IDLE:
            if (!lease->listed)
                list_idle(lessor, lease);
            break;
        case RDS_LEASE_DEAD:
            /* Reported for ever: nobody pushes it again, so it is in nobody's hands
             * here.  If it is being pushed just now, that report is the last. */
            if (atomic_exchange(&lease->reported, 1) != 0)
                break;
            atomic_fetch_sub(&lessor->dying, 1);
            unlist(lessor, lease);
            stopped_dialing(lessor, lease);
            if (atomic_load(&lease->held.on))
                atomic_fetch_sub(&lessor->held, 1);
            rds_slots_clear(&lessor->slots, lease->slot);
            rt_count_own(&lessor->open, (uint64_t)-1);
            rds_lease_unref(lease);
            break;
        }
    }
}

static void take_inbox(struct rds_lessor *lessor)
{
    struct rt_node *node = rt_stack_take(&lessor->inbox);
    uint64_t wait = lessor->channel->options.lease_wait;

    while (node != NULL) {
        struct rt_job *base = RT_CONTAINER_OF(node, struct rt_job, node);

        node = node->next;
        base->deadline = wait == 0 ? RT_NEVER : rt_after(rt_now(), wait);
        rt_joblist_append(&lessor->waiting, base);
    }
}

/* Drop what was cancelled, or has waited too long, among what waits. */
static void sweep(struct rds_lessor *lessor, uint64_t now)
{
    struct rt_joblist kept;
    struct rt_job *base;
    uint64_t next = RT_NEVER;

    rt_joblist_init(&kept);
    while ((base = rt_joblist_pop(&lessor->waiting)) != NULL) {
        if (rt_job_state(base) == RT_JOB_CANCELLED) {
            send_home(lessor, base, RT_ECANCELLED, "cancelled");
        } else if (base->deadline <= now) {
            waited_enough(lessor, base);
        } else {
            if (base->deadline < next)
                next = base->deadline;
            rt_joblist_append(&kept, base);
        }
    }
    lessor->waiting = kept;
    rt_source_due(&lessor->source, next);
}

/* ---- giving out --------------------------------------------------------- */

static void give(struct rds_lessor *lessor, struct rds_lease *lease, struct rt_job *base)
{
    struct rds_conn *conn = &lease->conn;

    rds_lease_ref(lease); /* the job's */
    base->deadline = RT_NEVER;
    atomic_store(&rds_job_of(base)->lease, lease);
    rt_fence();
    /* Partner: rds_lease_cancelled(), which looks for the lease after it has
     * cancelled: it finds the lease, or this look finds the job cancelled. */
    if (rt_job_state(base) == RT_JOB_CANCELLED && rds_lease_end(lease, RDS_LEASE_TAKEN))
        rds_lease_report(lease);
    if (!rds_job_of(base)->holds)
        rt_count_own(&lessor->commands, 1);
    if (rds_conn_accept(conn, base))
        rds_conn_send(conn);
}

static int open_lease(struct rds_lessor *lessor, struct rds_lease **out)
{
    struct rds_lease **slot = rds_slots_take(&lessor->slots);
    int err;

    if (slot == NULL)
        return RT_ENOMEM;
    err = rds_lease_new(lessor, slot);
    if (err != RT_OK) {
        rds_slots_clear(&lessor->slots, slot);
        return err;
    }
    *out = *slot;
    (*out)->slot = slot;
    (*out)->dialing = true;
    lessor->dialing++;
    rt_count_own(&lessor->opened, 1);
    rt_count_own(&lessor->open, 1);
    rt_atomic_max(&lessor->open_high, rt_read(&lessor->open));
    return RT_OK;
}

static bool may_dial(const struct rds_lessor *lessor)
{
    if (lessor->by_name && rt_now() >= atomic_load(&lessor->address_until))
        return lessor->dialing < PACE_BY_NAME;
    return lessor->dialing < PACE;
}

static bool give_up_spare(struct rds_lease *lease)
{
    return rds_lease_end(lease, RDS_LEASE_SPARE);
}

/* Make room by closing what its holder does not need just now. */
static bool reclaim(struct rds_lessor *lessor)
{
    struct rds_lease *lease;

    if (atomic_load(&lessor->spares) == 0)
        return false;
    lease = rds_slots_find(&lessor->slots, give_up_spare);
    if (lease == NULL)
        return false;
    atomic_fetch_sub(&lessor->spares, 1);
    rds_lease_kill(lease);
    take_reports(lessor); /* its end among them: there is room */
    return true;
}

/* One command that waits gets a lease, or an answer.  False: it has to wait. */
static bool serve_one(struct rds_lessor *lessor)
{
    const struct rds_options *o = &lessor->channel->options;
    struct rt_job *base = lessor->waiting.head;
    struct rds_lease *lease = NULL;
    int err;

    if (rt_job_state(base) == RT_JOB_CANCELLED) {
        send_home(lessor, rt_joblist_pop(&lessor->waiting), RT_ECANCELLED, "cancelled");
        return true;
    }
    lease = take_idle(lessor);
    if (lease == NULL && rt_read(&lessor->open) >= o->max_leases && !reclaim(lessor)) {
        if (o->lease_wait != 0 || atomic_load(&lessor->dying) > 0)
            return false;
        no_room(lessor, rt_joblist_pop(&lessor->waiting));
        return true;
    }
    if (lease == NULL && !may_dial(lessor))
        return false;
    (void)rt_joblist_pop(&lessor->waiting);
    if (lease == NULL) {
        err = open_lease(lessor, &lease);
        if (err != RT_OK) {
            send_home(lessor, base, err, "No connection to %.120s: %s; the command was not sent, "
                      "so it was not executed", rds_channel_endpoint(lessor->channel),
                      rt_strerror(err));
            return true;
        }
    }
    give(lessor, lease, base);
    return true;
}

static bool closing(const struct rds_lessor *lessor)
{
    return atomic_load(&lessor->channel->closing) != 0 ||
           rt_pool_state(lessor->channel->pool) >= RT_POOL_DRAINING;
}

static void tell_to_close(struct rds_lease *lease)
{
    rt_source_attend(&lease->conn.source, RT_CLOSING);
}

static void tell_if_asking(struct rds_lease *lease)
{
    if (rds_conn_state(&lease->conn) == RDS_CONN_CREDENTIALS)
        rt_source_attend(&lease->conn.source, 0);
}

/* Refuse what there is, and end when the last lease has ended. */
static void close_down(struct rds_lessor *lessor)
{
    struct rt_job *base;

    while ((base = rt_joblist_pop(&lessor->waiting)) != NULL)
        refuse(lessor, base);
    if (!lessor->told)
        rds_slots_for_each(&lessor->slots, tell_to_close);
    lessor->told = true;
    if (rt_read(&lessor->open) == 0 && atomic_exchange(&lessor->closed, 1) == 0)
        rt_source_attend(&lessor->source, 0); /* a worker retires it */
}

/* The lessor's due was for the address, or for something earlier. */
static void forget_address(struct rds_lessor *lessor)
{
    uint64_t until = atomic_load(&lessor->address_until);

    if (rt_now() < until)
        rt_source_due(&lessor->source, until);
    else
        rds_resolve_release(atomic_exchange(&lessor->address, NULL));
}

static void dispatch(struct rds_lessor *lessor)
{
    uint32_t notes = atomic_exchange(&lessor->notes, 0);
    unsigned gifts = 0;

    /* In this order: who gave back a lease before he asked for one has its room. */
    take_inbox(lessor);
    take_reports(lessor);
    if (notes & DROP_ALL)
        rds_slots_for_each(&lessor->slots, rds_lease_kill);
    else if (notes & DROP_IDLE)
        rds_slots_for_each(&lessor->slots, drop_if_idle);
    if (notes & RT_DUE)
        forget_address(lessor);
    if (notes & ANSWER)
        rds_slots_for_each(&lessor->slots, tell_if_asking);
    if (closing(lessor)) {
        close_down(lessor);
    } else {
        while (lessor->waiting.head != NULL && gifts < GIFTS && serve_one(lessor))
            gifts++;
        if (gifts == GIFTS)
            rt_source_attend(&lessor->source, 0); /* the rest is a worker's */
        if (lessor->waiting.head != NULL && lessor->waiting.head->deadline != RT_NEVER)
            rt_source_due(&lessor->source, lessor->waiting.head->deadline);
        if (notes & (SWEEP | RT_DUE))
            sweep(lessor, rt_now());
    }
    /* Whoever pushes a lease's last report need not serve: its connection may be
     * closed, and retired, and the channel gone with it.  So it is looked for. */
    if (atomic_load(&lessor->dying) > 0)
        rt_source_due(&lessor->source, rt_after(rt_now(), RT_MS));
    atomic_store_explicit(&lessor->queued, lessor->waiting.count, memory_order_relaxed);
}

void rds_lessor_serve(struct rds_lessor *lessor)
{
    unsigned rounds = 0;

    if (!rds_owner_enter(&lessor->owner))
        return;
    do {
        dispatch(lessor);
        if (++rounds == ROUNDS) {
            /* Whatever the notes were for, a worker looks at it now. */
            atomic_store(&lessor->owner, RDS_FREE);
            rt_source_attend(&lessor->source, 0);
            return;
        }
    } while (!rds_owner_leave(&lessor->owner));
}

static void handle(struct rt_source *src, uint32_t what, struct rt_worker *worker)
{
    struct rds_lessor *lessor = RT_CONTAINER_OF(src, struct rds_lessor, source);

    (void)worker;
    atomic_fetch_or(&lessor->notes, what);
    if (!rds_owner_enter(&lessor->owner))
        return;
    do {
        dispatch(lessor);
        if (atomic_load(&lessor->closed) != 0) {
            struct rds_channel *channel = lessor->channel;

            rds_channel_ref(channel);
            if (rt_source_retire(src)) {
                rds_channel_part_closed(channel);
                rds_channel_unref(channel);
                return; /* held for good */
            }
            rds_channel_unref(channel);
        }
    } while (!rds_owner_leave(&lessor->owner));
}

/* ---- for callers -------------------------------------------------------- */

static void refuse_inbox(struct rds_lessor *lessor)
{
    struct rt_node *node = rt_stack_take(&lessor->inbox);

    while (node != NULL) {
        struct rt_job *base = RT_CONTAINER_OF(node, struct rt_job, node);

        node = node->next;
        refuse(lessor, base);
    }
}

int rds_lease_submit(struct rds_channel *channel, struct rds_job *job)
{
    struct rds_lessor *lessor = channel->lessor;
    int err;

    if (closing(lessor))
        return RT_ECLOSED;
    err = rds_channel_add_part(channel, &lessor->added, &lessor->source);
    if (err)
        return err;
    RT_CHECK(rt_job_move(&job->base, RT_JOB_IDLE, RT_JOB_QUEUED));
    job->leased = true;
    rt_stack_push(&lessor->inbox, &job->base.node);
    /* Partner: the exchange of `closed` in close_down(): one of the two finds the
     * job, this look or the last serving. */
    rt_fence();
    if (atomic_load(&lessor->closed) != 0)
        refuse_inbox(lessor);
    else
        rds_lessor_serve(lessor);
    return RT_OK;
}

void rds_lease_cancelled(struct rds_channel *channel, struct rds_job *job)
{
    struct rds_lessor *lessor = channel->lessor;
    struct rds_lease *lease;

    /* Partner: give(). */
    rt_fence();
    lease = atomic_load(&job->lease);
    if (lease == NULL) {
        atomic_fetch_or(&lessor->notes, SWEEP);
    } else {
        /* It has not been idle since it was given the job, so it is the job's
         * still, or dead: see rds_lease_finished(). */
        if (rds_lease_end(lease, RDS_LEASE_TAKEN))
            rds_lease_report(lease);
        rt_source_attend(&lease->conn.source, 0);
    }
    rt_source_attend(&lessor->source, 0);
}

void rds_lease_disconnect(struct rds_channel *channel, bool in_use)
{
    struct rds_lessor *lessor = channel->lessor;

    if (atomic_load_explicit(&lessor->added, memory_order_acquire) != 2)
        return;
    atomic_fetch_or(&lessor->notes, in_use ? DROP_ALL : DROP_IDLE);
    rds_lessor_serve(lessor);
}

void rds_lessor_close(struct rds_lessor *lessor)
{
    if (atomic_load_explicit(&lessor->added, memory_order_acquire) == 2)
        rt_source_attend(&lessor->source, RT_CLOSING);
}

void rds_lessor_tell_asking(struct rds_lessor *lessor)
{
    if (atomic_load_explicit(&lessor->added, memory_order_acquire) == 2)
        rt_source_attend(&lessor->source, ANSWER);
}

static void close_copy(struct rds_lease *lease)
{
    int sock = atomic_load(&lease->conn.sock);

    if (sock >= 0)
        close(sock);
}

void rds_lessor_abandon(struct rds_lessor *lessor)
{
    rds_slots_for_each(&lessor->slots, close_copy);
}
