/* The states of a job: every legal and illegal move, and the races between the
 * owner who takes a job back and the worker who has it. */
#include "rt_job.h"
#include "threads.h"

static const enum rt_job_state states[] = {
    RT_JOB_IDLE, RT_JOB_QUEUED, RT_JOB_RUNNING, RT_JOB_CANCELLED, RT_JOB_ABANDONED, RT_JOB_DONE,
};
#define STATES (sizeof states / sizeof *states)

/* The picture in rt_job.h, written once more. */
static bool in_the_picture(enum rt_job_state from, enum rt_job_state to)
{
    static const uint8_t edges[][2] = {
        { RT_JOB_IDLE, RT_JOB_QUEUED },       { RT_JOB_QUEUED, RT_JOB_RUNNING },
        { RT_JOB_QUEUED, RT_JOB_CANCELLED },  { RT_JOB_QUEUED, RT_JOB_DONE },
        { RT_JOB_RUNNING, RT_JOB_QUEUED },    { RT_JOB_RUNNING, RT_JOB_ABANDONED },
        { RT_JOB_RUNNING, RT_JOB_DONE },      { RT_JOB_CANCELLED, RT_JOB_DONE },
        { RT_JOB_ABANDONED, RT_JOB_DONE },    { RT_JOB_DONE, RT_JOB_IDLE },
    };
    size_t i;

    for (i = 0; i < sizeof edges / sizeof *edges; i++) {
        if (edges[i][0] == from && edges[i][1] == to)
            return true;
    }
    return false;
}

static void put(struct rt_job *job, enum rt_job_state state)
{
    rt_job_init(job, NULL, RT_NEVER);
    atomic_store(&job->state, (uint8_t)state);
}

struct move {
    enum rt_job_state from, to;
};

static void illegal_move(void *arg)
{
    const struct move *move = arg;
    struct rt_job job;

    MT_REQUIRE(freopen("/dev/null", "w", stderr) != NULL);
    put(&job, move->from);
    rt_job_move(&job, move->from, move->to);
}

static void illegal_finish(void *arg)
{
    struct rt_job job;

    MT_REQUIRE(freopen("/dev/null", "w", stderr) != NULL);
    put(&job, *(enum rt_job_state *)arg);
    rt_job_finish(&job, RT_OK);
}

static void moves(void)
{
    struct rt_job job;
    size_t i, j, k;

    for (i = 0; i < STATES; i++) {
        for (j = 0; j < STATES; j++) {
            struct move move = { states[i], states[j] };
            int status;

            if (!in_the_picture(move.from, move.to)) {
                status = mt_in_child(illegal_move, &move);
                MT_CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
                continue;
            }
            /* It takes place from its own state and from no other. */
            for (k = 0; k < STATES; k++) {
                put(&job, states[k]);
                MT_EQ(rt_job_move(&job, move.from, move.to), states[k] == move.from);
                MT_EQ(rt_job_state(&job), states[k] == move.from ? move.to : states[k]);
            }
        }
    }
}

static void cancel_and_finish(void)
{
    struct rt_job job;
    size_t i;

    for (i = 0; i < STATES; i++) {
        enum rt_job_state was = states[i], now = was;
        bool taken = was == RT_JOB_QUEUED || was == RT_JOB_RUNNING;

        put(&job, was);
        MT_EQ(rt_job_cancel(&job), taken);
        if (taken)
            now = was == RT_JOB_QUEUED ? RT_JOB_CANCELLED : RT_JOB_ABANDONED;
        MT_EQ(rt_job_state(&job), now);

        put(&job, was);
        if (was == RT_JOB_IDLE || was == RT_JOB_DONE) {
            int status = mt_in_child(illegal_finish, &was);

            MT_CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
            continue;
        }
        MT_EQ(rt_job_finish(&job, RT_ELOST), taken); /* wanted unless taken back */
        MT_EQ(rt_job_state(&job), RT_JOB_DONE);
        MT_EQ(job.err, RT_ELOST);
    }
}

static void lists(void)
{
    struct rt_job jobs[6];
    struct rt_joblist list, front;
    int i;

    for (i = 0; i < 6; i++)
        rt_job_init(&jobs[i], NULL, RT_NEVER);
    rt_joblist_init(&list);
    rt_joblist_init(&front);
    MT_CHECK(rt_joblist_pop(&list) == NULL);
    rt_joblist_prepend_all(&list, &front);
    MT_CHECK(list.head == NULL && list.tail == NULL);
    for (i = 0; i < 3; i++)
        rt_joblist_append(&front, &jobs[i]);
    rt_joblist_prepend_all(&list, &front); /* onto an empty list */
    MT_CHECK(front.head == NULL && front.count == 0);
    rt_joblist_append(&list, &jobs[4]);
    rt_joblist_append(&front, &jobs[5]);
    rt_joblist_prepend_all(&list, &front);
    rt_joblist_append(&list, &jobs[3]);
    MT_EQ(list.count, 6);
    MT_CHECK(rt_joblist_pop(&list) == &jobs[5]);
    for (i = 0; i < 3; i++)
        MT_CHECK(rt_joblist_pop(&list) == &jobs[i]);
    MT_CHECK(rt_joblist_pop(&list) == &jobs[4]);
    MT_CHECK(rt_joblist_pop(&list) == &jobs[3]);
    MT_CHECK(list.head == NULL && list.tail == NULL && list.count == 0);
}

/* ---- races -------------------------------------------------------------- */

static struct rt_job raced;
static atomic_uint go, worker_done;
static unsigned total;
static bool finished_wanted, was_taken;
static uint64_t worker_rnd;

static void wait_turn(atomic_uint *turn, unsigned round)
{
    unsigned spins = 0;

    while (atomic_load(turn) < round)
        mt_relax(&spins);
}

/* Take, now and then put back and take again, finish: as a connection does. */
static void *race_worker(void *arg)
{
    unsigned round;

    (void)arg;
    for (round = 1; round <= total; round++) {
        unsigned backs = (unsigned)(mt_rand(&worker_rnd) % 3);
        bool taken;

        wait_turn(&go, round);
        taken = rt_job_move(&raced, RT_JOB_QUEUED, RT_JOB_RUNNING);
        while (taken && backs-- > 0 && rt_job_move(&raced, RT_JOB_RUNNING, RT_JOB_QUEUED))
            taken = rt_job_move(&raced, RT_JOB_QUEUED, RT_JOB_RUNNING);
        was_taken = taken;
        finished_wanted = rt_job_finish(&raced, taken ? RT_OK : RT_ECANCELLED);
        atomic_store(&worker_done, round);
    }
    return NULL;
}

static void races(void)
{
    unsigned outcomes[3] = { 0, 0, 0 };
    unsigned round, i;
    pthread_t thread;
    uint64_t rnd = worker_rnd + 1;

    total = (unsigned)MT_SCALE(200000);
    rt_job_init(&raced, NULL, RT_NEVER);
    thread = mt_spawn(race_worker, NULL);
    for (round = 1; round <= total; round++) {
        unsigned delay = (unsigned)(mt_rand(&rnd) % 40);
        bool cancelled;

        MT_REQUIRE(rt_job_move(&raced, RT_JOB_IDLE, RT_JOB_QUEUED));
        atomic_store(&go, round);
        for (i = 0; i < delay; i++)
            MT_PAUSE();
        cancelled = rt_job_cancel(&raced);
        wait_turn(&worker_done, round);
        /* Exactly one of them won, and both know which. */
        if (cancelled == finished_wanted)
            MT_CHECK(!"cancelled and wanted, or neither");
        if (!cancelled && !was_taken)
            MT_CHECK(!"a job that nobody took back was not run");
        outcomes[cancelled ? (was_taken ? 1 : 0) : 2]++;
        MT_REQUIRE(rt_job_state(&raced) == RT_JOB_DONE);
        MT_REQUIRE(rt_job_move(&raced, RT_JOB_DONE, RT_JOB_IDLE));
    }
    mt_join(thread);
    printf("cancelled in the queue %u, while running %u, too late %u\n", outcomes[0], outcomes[1],
           outcomes[2]);
    MT_EQ(outcomes[0] + outcomes[1] + outcomes[2], total);
}

int main(void)
{
    worker_rnd = mt_seed();
    MT_EQ(sizeof(((struct rt_job *)0)->state), 1);
    moves();
    cancel_and_finish();
    lists();
    races();
    return mt_report("job");
}
