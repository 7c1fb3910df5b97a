/* Room in a pool's queue: who found it full is told when there is some.
 *
 * `room_sought` says that somebody waits, so that a worker that takes a job from the queue
 * looks at one number.  Each side publishes before it looks at what the other publishes,
 * so one of the two sees the other: who seeks lists the job and then looks at the depth,
 * who leaves lowers the depth and then looks for seekers. */
#include "rt_pool.h"

/* Send everybody home who waits. */
static void tell(struct rt_pool *pool)
{
    struct rt_node *node;

    /* Before the look at the list, which a store may come after.  Partner: the store in
     * rt_pool_seek_room(), after the push. */
    atomic_exchange(&pool->room_sought, 0);
    for (node = rt_stack_take(&pool->seekers); node != NULL;) {
        struct rt_job *job = RT_CONTAINER_OF(node, struct rt_job, node);

        node = node->next; /* it is its owner's once it is home */
        rt_pool_complete(job, RT_OK);
    }
}

void rt_pool_leave_queue(struct rt_pool *pool, size_t n)
{
    atomic_fetch_sub(&pool->depth, (uint32_t)n);
    /* Partner: rt_pool_seek_room(). */
    if (atomic_load(&pool->room_sought) != 0)
        tell(pool);
}

void rt_pool_seek_room(struct rt_pool *pool, struct rt_job *job)
{
    RT_CHECK(rt_job_move(job, RT_JOB_IDLE, RT_JOB_QUEUED));
    job->next = NULL;
    rt_stack_push(&pool->seekers, &job->node);
    atomic_store(&pool->room_sought, 1);
    /* Partner: rt_pool_leave_queue(). */
    if (atomic_load(&pool->depth) < pool->queue_limit)
        tell(pool);
}
