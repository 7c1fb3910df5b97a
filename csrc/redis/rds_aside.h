/* Aside: a second connection, for reads whose replies are known to be large.
 *
 * Replies come in the order of their commands, so whoever asks for 10 MB on the shared
 * connection has everybody behind him wait for as long as they take to come.  Nothing
 * tells beforehand how large a reply will be, but most large values are read again and
 * again: so the channel remembers which commands had a reply of RDS_LARGE bytes, by a hash
 * of their bytes, and the next time they travel on a connection beside the shared one,
 * where they wait for one another alone.  One whose reply was small there goes back.
 *
 * It is opened by the first such command, which does not wait for it, nor does any other:
 * while it is not ready, they go with the rest, and when it is lost, what was still to be
 * sent on it joins them.  So whatever is wrong with it (a server that takes no more
 * clients) costs nobody a command.  It ends with the shared one, whose next server may be
 * another, and is made anew when it was not used for so long that somebody on the way
 * may have forgotten it.
 *
 * Only commands that change nothing go aside, one by one and not in a pipeline: between
 * the two connections there is no order. */
#ifndef RDS_ASIDE_H
#define RDS_ASIDE_H

#include "rds_job.h"

#define RDS_LARGE ((uint64_t)256 << 10) /* bytes of a reply */
#define RDS_ASIDE_SLOTS 1024            /* commands remembered */

struct rds_channel;
struct rds_conn;

struct rds_aside {
    struct rds_conn *conn;
    _Atomic uint32_t added;    /* as rds_channel's */
    _Atomic uint32_t known;    /* 1: there is something in `marks` */
    _Atomic uint64_t dial_at;  /* not to be tried before, when it did not come about */
    _Atomic uint64_t used_at;  /* the last command */
    _Atomic uint32_t marks[RDS_ASIDE_SLOTS]; /* by some of their bits; 0: none */
    _Atomic uint64_t commands; /* that went aside */
};

/* Which command it is: a hash of its bytes, or 0 for one that is not remembered.
 * Thread: who has the job, before its reply comes. */
uint32_t rds_aside_mark(const struct rds_job *job);

/* The connection for a command that is to go aside, or NULL: it goes with the others.
 * Thread: any.  GIL: may be held.  Blocks: no. */
struct rds_conn *rds_aside_conn(struct rds_channel *channel, struct rds_job *job);

/* Where conn is the one aside, and is not ready, what waits for it goes with the others.
 * Thread: who holds conn. */
void rds_aside_bring_back(struct rds_conn *conn);

/* Close it once it is quiet.  Thread: any.  Blocks: no. */
void rds_aside_disconnect(struct rds_channel *channel);

/* Its reply took so many bytes.  Thread: who holds conn. */
void rds_aside_heard(struct rds_conn *conn, const struct rds_job *job, uint64_t bytes);

#endif
