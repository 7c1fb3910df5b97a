/* Credentials: the configured ones, later ones, or those of an owner who is asked for each
 * connection; kept for no longer than a handshake takes, and wiped. */
#include "rds_conn.h"

static void wipe(char **secret)
{
    if (*secret == NULL)
        return;
    explicit_bzero(*secret, strlen(*secret));
    free(*secret);
    *secret = NULL;
}

void rds_login_forget(struct rds_conn *conn)
{
    wipe(&conn->username);
    wipe(&conn->password);
}

void rds_credentials_free(struct rds_credentials *credentials)
{
    if (credentials == NULL)
        return;
    wipe(&credentials->username);
    wipe(&credentials->password);
    free(credentials);
}

/* ---- asking ------------------------------------------------------------- */

int rds_login_ask(struct rds_conn *conn, struct rt_mailbox *mailbox)
{
    struct rds_channel *channel = conn->channel;

    /* In this order: an answer that is dropped because nobody asks is seen here.
     * Partner: rds_channel_credentials(). */
    conn->asking = true;
    atomic_fetch_add(&channel->asking, 1);
    conn->answers_seen = atomic_load(&channel->answers);
    return channel->credentials_needed(channel->user, mailbox);
}

void rds_login_stop_asking(struct rds_conn *conn)
{
    struct rds_channel *channel = conn->channel;

    if (!conn->asking)
        return;
    conn->asking = false;
    if (atomic_fetch_sub(&channel->asking, 1) == 1)
        rds_credentials_free(atomic_exchange(&channel->credentials, NULL));
}

static bool copy_credentials(struct rds_conn *conn, const char *username, const char *password)
{
    conn->username = username != NULL ? strdup(username) : NULL;
    conn->password = strdup(password != NULL ? password : "");
    return conn->password != NULL && (username == NULL || conn->username != NULL);
}

int rds_login_answer(struct rds_conn *conn)
{
    struct rds_channel *channel = conn->channel;
    struct rds_credentials *c, *none = NULL;
    int err;

    if (atomic_load(&channel->answers) == conn->answers_seen)
        return RT_EFULL;
    c = atomic_exchange(&channel->credentials, NULL);
    if (c == NULL) { /* another connection is copying it */
        rt_source_attend(&conn->source, 0);
        return RT_EFULL;
    }
    err = c->err;
    rds_login_forget(conn);
    if (err == RT_OK && !copy_credentials(conn, c->username, c->password))
        err = RT_ENOMEM;
    /* Back for the others, unless a newer one has come. */
    if (!atomic_compare_exchange_strong(&channel->credentials, &none, c))
        rds_credentials_free(c);
    return err;
}

/* ---- for a handshake ------------------------------------------------------ */

/* Those of rds_channel_login(), if there are any. */
static bool take_login(struct rds_conn *conn, bool *found)
{
    struct rds_channel *channel = conn->channel;
    bool copied = true;

    while (atomic_flag_test_and_set_explicit(&channel->login_lock, memory_order_acquire)) {
    }
    *found = channel->login != NULL;
    if (*found)
        copied = copy_credentials(conn, channel->login->username, channel->login->password);
    atomic_flag_clear_explicit(&channel->login_lock, memory_order_release);
    return copied;
}

bool rds_login_take(struct rds_conn *conn)
{
    const struct rds_options *o = rds_conn_options(conn);
    bool found;

    conn->identity = atomic_load(&conn->channel->identity);
    if (o->ask_credentials)
        return true; /* rds_login_answer() has put them there */
    rds_login_forget(conn);
    if (!take_login(conn, &found))
        return false;
    if (found || (o->password == NULL && o->username == NULL))
        return true;
    return copy_credentials(conn, o->username, o->password);
}
