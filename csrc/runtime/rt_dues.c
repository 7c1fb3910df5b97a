#include "rt_dues.h"

#include "rt_poller.h"

void rt_dues_fini(struct rt_dues *dues)
{
    free(dues->heap);
    dues->heap = NULL;
    dues->count = dues->room = 0;
}

bool rt_dues_reserve(struct rt_dues *dues, uint32_t sources)
{
    uint32_t room = dues->room > 0 ? dues->room : 16;
    struct rt_source **heap;

    if (sources <= dues->room)
        return true;
    while (room < sources)
        room *= 2;
    heap = realloc(dues->heap, room * sizeof *heap);
    if (heap == NULL)
        return false;
    dues->heap = heap;
    dues->room = room;
    return true;
}

static void place(struct rt_dues *dues, uint32_t at, struct rt_source *src)
{
    dues->heap[at] = src;
    src->place = at + 1;
}

/* Move src up from `at`, where nothing is, as far as it belongs. */
static void sift_up(struct rt_dues *dues, uint32_t at, struct rt_source *src)
{
    while (at > 0 && dues->heap[(at - 1) / 2]->key > src->key) {
        place(dues, at, dues->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    place(dues, at, src);
}

static void sift_down(struct rt_dues *dues, uint32_t at, struct rt_source *src)
{
    uint32_t child;

    while ((child = 2 * at + 1) < dues->count) {
        if (child + 1 < dues->count && dues->heap[child + 1]->key < dues->heap[child]->key)
            child++;
        if (dues->heap[child]->key >= src->key)
            break;
        place(dues, at, dues->heap[child]);
        at = child;
    }
    place(dues, at, src);
}

static void settle(struct rt_dues *dues, uint32_t at, struct rt_source *src)
{
    if (at > 0 && dues->heap[(at - 1) / 2]->key > src->key)
        sift_up(dues, at, src);
    else
        sift_down(dues, at, src);
}

void rt_dues_put(struct rt_dues *dues, struct rt_source *src, uint64_t when)
{
    src->key = when;
    if (src->place == 0) {
        RT_CHECK(dues->count < dues->room);
        place(dues, dues->count++, src);
    }
    settle(dues, src->place - 1, src);
}

void rt_dues_remove(struct rt_dues *dues, struct rt_source *src)
{
    uint32_t at = src->place - 1;
    struct rt_source *last;

    if (src->place == 0)
        return;
    src->place = 0;
    last = dues->heap[--dues->count];
    if (last != src)
        settle(dues, at, last);
}

struct rt_source *rt_dues_next(const struct rt_dues *dues, uint64_t *when)
{
    if (dues->count == 0)
        return NULL;
    *when = dues->heap[0]->key;
    return dues->heap[0];
}
