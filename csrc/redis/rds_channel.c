#include "rds_channel.h"

#include <unistd.h>

#include "rds_lease.h"
#include "rds_pipeline.h"

struct named_channel {
    struct rds_channel channel;
    char *endpoint;
    char *copies[7]; /* of the options' strings */
};

static struct named_channel *named(const struct rds_channel *channel)
{
    return RT_CONTAINER_OF(channel, struct named_channel, channel);
}

static bool copy(struct named_channel *self, unsigned slot, const char **string)
{
    if (*string == NULL)
        return true;
    self->copies[slot] = strdup(*string);
    *string = self->copies[slot];
    return *string != NULL;
}

static void free_channel(struct named_channel *self)
{
    unsigned i;

    for (i = 0; i < sizeof self->copies / sizeof *self->copies; i++) {
        if (self->copies[i] != NULL)
            explicit_bzero(self->copies[i], strlen(self->copies[i]));
        free(self->copies[i]);
    }
    rds_credentials_free(atomic_exchange(&self->channel.credentials, NULL));
    rds_credentials_free(self->channel.login);
    rds_conn_free(self->channel.conn);
    rds_conn_free(self->channel.aside.conn);
    rds_lessor_free(self->channel.lessor);
    rds_tls_free(self->channel.tls);
    if (self->channel.user_free != NULL)
        self->channel.user_free(self->channel.user);
    free(self->endpoint);
    free(self);
}

static bool valid(const struct rds_options *o)
{
    if (o->path != NULL) {
        if (*o->path == '\0')
            return false;
    } else if (o->host == NULL || *o->host == '\0' || o->port < 1 || o->port > 65535) {
        return false;
    }
    return (o->protocol == 2 || o->protocol == 3) && o->db >= 0 && o->max_reply >= 1024 &&
           (o->tls == NULL || (o->tls->host != NULL && *o->tls->host != '\0')) &&
           o->max_reply < UINT32_MAX - 4 * RDS_PAGE && o->connect_retries >= -1;
}

static bool name(struct named_channel *self)
{
    const struct rds_options *o = &self->channel.options;
    size_t size;

    if (o->path != NULL) {
        self->endpoint = strdup(o->path);
        return self->endpoint != NULL;
    }
    size = strlen(o->host) + 16;
    self->endpoint = malloc(size);
    if (self->endpoint != NULL)
        snprintf(self->endpoint, size, "%s:%d", o->host, o->port);
    return self->endpoint != NULL;
}

int rds_channel_new(struct rt_pool *pool, const struct rds_options *options,
                    struct rds_channel **out)
{
    struct named_channel *self;
    struct rds_options *o;

    if (!valid(options))
        return RT_EINVAL;
    self = calloc(1, sizeof *self);
    if (self == NULL)
        return RT_ENOMEM;
    self->channel.options = *options;
    o = &self->channel.options;
    o->tls = NULL;
    if (!copy(self, 0, &o->host) || !copy(self, 1, &o->path) || !copy(self, 2, &o->username) ||
        !copy(self, 3, &o->password) || !copy(self, 4, &o->client_name) ||
        !copy(self, 5, &o->lib_name) || !copy(self, 6, &o->lib_version) || !name(self) ||
        (options->tls != NULL && rds_tls_new(options->tls, &self->channel.tls) != RT_OK) ||
        rds_conn_new(&self->channel, &self->channel.conn) != RT_OK ||
        rds_conn_new(&self->channel, &self->channel.aside.conn) != RT_OK ||
        rds_lessor_new(&self->channel, &self->channel.lessor) != RT_OK) {
        free_channel(self);
        return RT_ENOMEM;
    }
    atomic_init(&self->channel.refs, 1);
    atomic_init(&self->channel.close_at, RT_NEVER);
    atomic_flag_clear(&self->channel.login_lock);
    self->channel.pool = pool;
    rt_pool_ref(pool);
    *out = &self->channel;
    return RT_OK;
}

void rds_channel_ref(struct rds_channel *channel)
{
    atomic_fetch_add_explicit(&channel->refs, 1, memory_order_relaxed);
}

void rds_channel_unref(struct rds_channel *channel)
{
    struct rt_pool *pool = channel->pool;

    /* Partner: the same line in another thread; the last one frees. */
    if (atomic_fetch_sub_explicit(&channel->refs, 1, memory_order_acq_rel) != 1)
        return;
    free_channel(named(channel));
    rt_pool_unref(pool);
}

/* Stands in close_job once the connection is closed. */
#define CLOSED_ALREADY ((struct rt_job *)1)

static void closed(struct rds_channel *channel)
{
    struct rt_job *job = atomic_exchange(&channel->close_job, CLOSED_ALREADY);

    if (job != NULL && job != CLOSED_ALREADY)
        rt_pool_complete(job, RT_OK);
}

/* ---- parts: the shared connection, that beside it, the lessor, each lease -- */

void rds_channel_part_opens(struct rds_channel *channel)
{
    atomic_fetch_add(&channel->parts, 1);
}

void rds_channel_part_closed(struct rds_channel *channel)
{
    /* Partner: rds_channel_close(), which sets `closing` and then looks. */
    if (atomic_fetch_sub(&channel->parts, 1) == 1 && atomic_load(&channel->closing) != 0)
        closed(channel);
}

int rds_channel_add_part(struct rds_channel *channel, _Atomic uint32_t *added,
                         struct rt_source *source)
{
    uint32_t absent = 0, seen;
    int err;

    if (atomic_load_explicit(added, memory_order_acquire) == 2)
        return RT_OK;
    err = rt_pool_start(channel->pool);
    if (err)
        return err;
    if (!atomic_compare_exchange_strong(added, &absent, 1)) {
        /* Another thread is at it, for less than a microsecond. */
        while ((seen = atomic_load_explicit(added, memory_order_acquire)) == 1) {
        }
        return seen == 2 ? RT_OK : RT_ECLOSED;
    }
    rds_channel_ref(channel); /* the poller's, until destroy() */
    rds_channel_part_opens(channel);
    err = rt_pool_add_source(channel->pool, source);
    atomic_store_explicit(added, err ? 0 : 2, memory_order_release);
    if (err) {
        rds_channel_part_closed(channel);
        rds_channel_unref(channel);
    }
    return err;
}

int rds_channel_push(struct rds_channel *channel, struct rds_job *job)
{
    struct rds_conn *conn = channel->conn, *aside;
    int err;

    if (atomic_load_explicit(&channel->closing, memory_order_acquire) != 0 ||
        rt_pool_state(channel->pool) >= RT_POOL_DRAINING)
        return RT_ECLOSED;
    err = rds_channel_add_part(channel, &channel->added, &conn->source);
    if (err)
        return err;
    aside = rds_aside_conn(channel, job);
    if (aside != NULL)
        conn = aside;
    RT_CHECK(rt_job_move(&job->base, RT_JOB_IDLE, RT_JOB_QUEUED));
    if (job->base.deadline != RT_NEVER)
        rt_source_due(&conn->source, job->base.deadline);
    if (job->pipeline != NULL) {
        rt_count(&channel->stats.pipelines, 1);
        rt_count(&channel->stats.pipelined, job->awaited);
    }
    if (rds_conn_accept(conn, &job->base) && aside != NULL)
        rds_conn_send(aside);
    return RT_OK;
}

void rds_channel_hold(struct rds_channel *channel, uint64_t now)
{
    atomic_store_explicit(&channel->held_since, now, memory_order_relaxed);
}

void rds_channel_kick(struct rds_channel *channel)
{
    /* Before it enters: a holder that it leaves a note for finds nothing held. */
    if (atomic_load_explicit(&channel->held_since, memory_order_relaxed) != 0)
        atomic_store(&channel->held_since, 0);
    rds_conn_send(channel->conn);
}

static uint64_t depth_of(const struct rds_conn *conn)
{
    uint64_t finished = atomic_load(&conn->finished);
    uint64_t submitted = atomic_load(&conn->submitted);

    return submitted > finished ? submitted - finished : 0;
}

/* Why a worker will look: take the oldest command outstanding besides the one just
 * pushed.  It is not counted as finished, so its finish comes after this look at
 * the counter, and so after our push; whoever finishes it (the reply's reader, or
 * a deadline) looks at the inbox once more afterwards. */
bool rds_channel_alone(const struct rds_channel *channel)
{
    return depth_of(channel->conn) <= 1;
}

void rds_channel_kick_one(struct rds_channel *channel)
{
    if (rds_channel_alone(channel))
        rds_channel_kick(channel);
    else
        rt_source_attend(&channel->conn->source, 0);
}

int rds_channel_submit(struct rds_channel *channel, struct rds_job *job)
{
    int err = rds_channel_push(channel, job);

    if (err == RT_OK)
        rds_channel_kick_one(channel);
    return err;
}

bool rds_channel_cancel(struct rds_channel *channel, struct rds_job *job)
{
    if (!rt_job_cancel(&job->base))
        return false;
    rt_count(&channel->stats.cancelled, 1);
    if (job->leased)
        rds_lease_cancelled(channel, job);
    return true;
}

static void tell_one(const _Atomic uint32_t *added, struct rds_conn *conn, uint32_t what)
{
    if (atomic_load_explicit(added, memory_order_acquire) == 2 &&
        rds_conn_state(conn) != RDS_CONN_CLOSED)
        rt_source_attend(&conn->source, what);
}

static void tell(struct rds_channel *channel, uint32_t what)
{
    tell_one(&channel->added, channel->conn, what);
    tell_one(&channel->aside.added, channel->aside.conn, what);
}

/* Have job posted when the connection is closed.  0 or RT_ECLOSED. */
static int wait_for_close(struct rds_channel *channel, struct rt_job *job)
{
    struct rt_job *none = NULL;

    /* Before it can be seen: whoever takes it finishes it. */
    RT_CHECK(rt_job_move(job, RT_JOB_IDLE, RT_JOB_QUEUED));
    if (atomic_compare_exchange_strong(&channel->close_job, &none, job))
        return RT_OK;
    if (none == CLOSED_ALREADY) {
        rt_pool_complete(job, RT_OK);
        return RT_OK;
    }
    RT_CHECK(rt_job_move(job, RT_JOB_QUEUED, RT_JOB_DONE));
    RT_CHECK(rt_job_move(job, RT_JOB_DONE, RT_JOB_IDLE));
    return RT_ECLOSED;
}

int rds_channel_close(struct rds_channel *channel, uint64_t close_at, struct rt_job *job)
{
    int err = RT_OK;

    if (job != NULL)
        err = wait_for_close(channel, job);
    rt_atomic_min(&channel->close_at, close_at);
    atomic_store(&channel->closing, 1);
    if (atomic_load(&channel->parts) == 0)
        closed(channel);
    tell(channel, RT_CLOSING);
    rds_lessor_close(channel->lessor);
    return err;
}

void rds_channel_release(struct rds_channel *channel)
{
    if (channel == NULL)
        return;
    if (!rt_pool_forked(channel->pool))
        rds_channel_close(channel, 0, NULL);
    rds_channel_unref(channel);
}

void rds_channel_disconnect(struct rds_channel *channel)
{
    rds_aside_disconnect(channel);
    if (rds_conn_state(channel->conn) == RDS_CONN_IDLE)
        return;
    atomic_store(&channel->conn->disconnect, 1);
    tell_one(&channel->added, channel->conn, RT_ATTEND);
}

void rds_channel_abandon(struct rds_channel *channel)
{
    /* A snapshot of the parent's threads at work: trust nothing but numbers. */
    int socks[] = { atomic_load(&channel->conn->sock), atomic_load(&channel->aside.conn->sock) };
    size_t i;

    for (i = 0; i < sizeof socks / sizeof *socks; i++) {
        if (socks[i] >= 0)
            close(socks[i]);
    }
    rds_lessor_abandon(channel->lessor);
}

static struct rds_credentials *new_credentials(const char *username, const char *password)
{
    struct rds_credentials *c = calloc(1, sizeof *c);

    if (c == NULL)
        return NULL;
    c->username = username != NULL ? strdup(username) : NULL;
    c->password = strdup(password);
    if (c->password == NULL || (username != NULL && c->username == NULL)) {
        rds_credentials_free(c);
        return NULL;
    }
    return c;
}

int rds_channel_login(struct rds_channel *channel, const char *username, const char *password)
{
    struct rds_credentials *c = new_credentials(username, password), *old;

    if (c == NULL)
        return RT_ENOMEM;
    /* Partner: take_login() in rds_connect.c. */
    while (atomic_flag_test_and_set_explicit(&channel->login_lock, memory_order_acquire)) {
    }
    old = channel->login;
    channel->login = c;
    atomic_flag_clear_explicit(&channel->login_lock, memory_order_release);
    rds_credentials_free(old);
    rds_channel_renewed(channel);
    return RT_OK;
}

void rds_channel_renewed(struct rds_channel *channel)
{
    /* Partner: take_idle() in rds_lessor.c. */
    atomic_fetch_add(&channel->identity, 1);
    rds_aside_disconnect(channel);
    rds_lease_disconnect(channel, false);
}

int rds_channel_credentials(struct rds_channel *channel, int err, const char *username,
                            const char *password)
{
    struct rds_credentials *c = err == RT_OK ? new_credentials(username, password)
                                             : calloc(1, sizeof *c);

    if (c == NULL)
        return RT_ENOMEM;
    c->err = err;
    rds_credentials_free(atomic_exchange(&channel->credentials, c));
    /* Partner: the look in credentials_came(). */
    atomic_fetch_add(&channel->answers, 1);
    if (atomic_load(&channel->asking) == 0)
        rds_credentials_free(atomic_exchange(&channel->credentials, NULL));
    tell(channel, RT_ATTEND);
    rds_lessor_tell_asking(channel->lessor);
    return RT_OK;
}

uint64_t rds_channel_depth(const struct rds_channel *channel)
{
    return depth_of(channel->conn) + depth_of(channel->aside.conn);
}

uint64_t rds_channel_submitted(const struct rds_channel *channel)
{
    return atomic_load(&channel->conn->submitted) + atomic_load(&channel->aside.conn->submitted);
}

unsigned rds_channel_connections(const struct rds_channel *channel)
{
    return (rds_conn_state(channel->conn) == RDS_CONN_READY) +
           (rds_conn_state(channel->aside.conn) == RDS_CONN_READY);
}

const char *rds_channel_endpoint(const struct rds_channel *channel)
{
    return named(channel)->endpoint;
}
