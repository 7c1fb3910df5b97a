/* A held lease: a connection that its holder writes to and reads from as he likes.
 *
 * Pub/sub, MONITOR, WATCH and whatever belongs to a connection need one for longer
 * than a command.  The holder is given a lease (rds_lease.h) that is connected and
 * logged in; from then on he hands in bytes, and takes the replies one by one, in the
 * order in which they came, whatever they answer.  A RESP3 push is a reply of the type
 * RDS_PUSH.
 *
 *     rds_job_init(job, ...); job->holds = true;
 *     rds_lease_submit(channel, job);         it comes home when the server is there
 *     lease = rds_held_claim(job);
 *     rds_held_write(lease, chunk);
 *     while ((r = rds_held_take(lease)) == NULL) and it is not lost
 *         rds_held_wait(lease, job);          comes home when there is news
 *     rds_held_release(lease);
 *
 * Messages belong to the queue and never to a job: who waits is only told that there is
 * something.  So a wait that is withdrawn, cancelled or too late costs no message, and
 * the connection lives.
 *
 *   who holds the connection                     the holder
 *   ------------------------                     ----------
 *   1 push onto `received`                       1 put the job into `reader`
 *   2 take `reader`, if it is there: post it     2 look at `received`: if there is
 *                                                  something, take `reader` back
 *
 * Why it is right: a fence between 1 and 2 on both sides, so one of them sees the other
 * (Dekker); and a slot is emptied by an exchange, so exactly one has the job.
 *
 * Where each message finds somebody waiting the socket is lent to his mailbox
 * (rds_loan.c), and then he who takes the messages is he who reads them.
 *
 * What nobody takes is kept up to a bound, HELD_MOST replies or HELD_BYTES; then the
 * socket is not read any more, and the server notices.
 *
 * SPARE is a further state of a held lease: its holder has no use for it just now.  The
 * lessor may close it to make room for another; the holder asks before he uses it
 * again.
 *
 *   TAKEN --rds_held_spare()--> SPARE --rds_held_resume()--> TAKEN
 *                                 +----the lessor needs room--> DEAD */
#ifndef RDS_HELD_H
#define RDS_HELD_H

#include "rds_job.h"

#define RDS_HELD_MOST 1024
#define RDS_HELD_BYTES ((uint64_t)1 << 20)
#define RDS_HELD_UNSENT ((uint64_t)64 << 10) /* with more bytes unsent who writes should wait */

struct rds_channel;
struct rds_conn;
struct rds_lease;

/* One reply; on the heap, the taker's to free with rds_received_free(). */
struct rds_received {
    struct rt_node node;
    struct rds_arena arena; /* of a reply over the cap: an RDS_FAILURE */
    char inline_bytes[112];
};

/* Bytes to be sent; on the heap, with room for them. */
struct rds_chunk {
    struct rt_node node;
    size_t len;
    char bytes[];
};

/* The part of a lease that is for being held. */
struct rds_held {
    _Atomic bool on;                 /* it is held, until its end */
    struct rt_stack received;        /* whole replies */
    _Atomic uint64_t count, bytes;   /* of them, and of those the holder has not taken */
    _Atomic bool stopped;            /* the socket is not read: too many */
    struct rt_job *_Atomic reader;   /* waits for a reply */
    struct rt_job *_Atomic writer;   /* waits until most is sent */
    _Atomic uint64_t read_by, write_by; /* their deadlines */
    struct rt_stack outbox;          /* chunks */
    _Atomic uint64_t given, gone;    /* bytes handed in, and sent */
    struct rt_mailbox *_Atomic lent_to; /* whose owner reads the socket (rds_loan.c), or NULL */
    _Atomic bool moved;              /* the holder waits in another loop: to be taken back */
    _Atomic int lost;                /* enum rt_err once the connection is */
    char why[128];                   /* the reason, written before `lost` */

    /* Who holds the connection. */
    struct rds_received *coming;     /* its reply is being read */
    struct rt_node *chunks, *last_chunk; /* of the outbox, in order */
    size_t head_sent;                /* bytes of the first that were appended */
    uint64_t from;                   /* conn->appended when it was given */
    bool fresh;                      /* something was received and not told of */
    unsigned unawaited;              /* reads in a row for which nobody waited */

    /* The holder. */
    struct rt_node *taken;           /* of `received`, in order */
};

/* ---- for the holder ------------------------------------------------------ */

/* Take over the lease that job came home with.  The holder has it from now on, until
 * rds_held_release().  Thread: the job's owner.  Blocks: no. */
struct rds_lease *rds_held_claim(struct rds_job *job);

/* A chunk with room for len bytes, or NULL. */
struct rds_chunk *rds_chunk_new(size_t len);

/* Send chunk: at once, as far as the socket takes it, the rest by a worker.  RT_OK, or
 * RT_ELOST when the connection is lost.  *tried says whether the socket was asked; if not,
 * a worker is at the connection, and what is sent elsewhere may overtake the chunk until
 * rds_held_wait_sent() has told that it was.
 * Thread: the holder's.  GIL: may be held.  Blocks: no.  Ownership: takes chunk. */
int rds_held_write(struct rds_lease *lease, struct rds_chunk *chunk, bool *tried);

/* Bytes handed in and not sent yet. */
uint64_t rds_held_unsent(const struct rds_lease *lease);

/* The next reply, or NULL: there is none yet, or will be none (rds_held_lost()).
 * Thread: the holder's.  Blocks: no.  Ownership: the caller has it. */
struct rds_received *rds_held_take(struct rds_lease *lease);
void rds_received_free(struct rds_received *received);

/* Read what the socket has, if nobody else is at the connection: then
 * rds_held_take() sees it.  Thread: the holder's.  Blocks: no. */
void rds_held_poll(struct rds_lease *lease);

/* Whether rds_held_take() would give something, or the connection is lost. */
bool rds_held_ready(const struct rds_lease *lease);

/* Have job come home when there is a reply to take (RT_OK, and sometimes for nothing),
 * the connection is lost (RT_OK as well), or job's deadline passed (RT_ETIMEOUT).  One at
 * a time.  Thread: the holder's.  Blocks: no. */
void rds_held_wait(struct rds_lease *lease, struct rt_job *job);

/* The same for the socket having been asked, and having taken all but RDS_HELD_UNSENT
 * bytes.  One at a time. */
void rds_held_wait_sent(struct rds_lease *lease, struct rt_job *job);

/* Take a job back that waits.  True: it is the caller's again.  False: it is on its way
 * home.  Thread: the job's owner.  Blocks: no. */
bool rds_held_withdraw(struct rds_lease *lease, struct rt_job *job);

/* RT_OK, or why there will be nothing more; then *why says it. */
int rds_held_lost(const struct rds_lease *lease, const char **why);

/* The lease is not needed just now.  Thread: the holder's.  Blocks: no. */
void rds_held_spare(struct rds_lease *lease);

/* It is needed again.  False: it is closed, or about to be. */
bool rds_held_resume(struct rds_lease *lease);

/* Close the connection, at once where nobody else is at it, and let go of it.  Whoever
 * waits is told.  Thread: the holder's.  GIL: may be held.  Blocks: no. */
void rds_held_release(struct rds_lease *lease);

/* ---- for rds_lease.c ----------------------------------------------------- */

void rds_held_init(struct rds_held *held);
void rds_held_fini(struct rds_held *held);

/* ---- for who holds the connection ---------------------------------------- */

/* The lease is the holder's from here on. */
void rds_held_begin(struct rds_conn *conn);

/* Append what was handed in, as far as it fits.  False: no memory. */
bool rds_held_append(struct rds_conn *conn, size_t most);

/* A write is over. */
void rds_held_sent(struct rds_conn *conn);

/* Where the reply that begins belongs; false: no memory. */
bool rds_held_receive(struct rds_conn *conn, struct rds_arena **into);

/* It is whole; too_big: say so in its place. */
void rds_held_received(struct rds_conn *conn, const char *too_big);

/* Tell the holder of what was received. */
void rds_held_tell(struct rds_conn *conn);

/* Whether the socket must not be read any more for now. */
bool rds_held_is_full(struct rds_conn *conn);

/* Wake whoever waits for too long.  Returns the next deadline. */
uint64_t rds_held_expire(struct rds_conn *conn, uint64_t now);

/* The connection is lost for good, unless it was already. */
void rds_held_end(struct rds_conn *conn, int err, const char *why);

#endif
