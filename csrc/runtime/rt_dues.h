/* Sources by when they are due: a binary heap.
 *
 * Each source knows its place, so that it can be moved or taken out at once.  Room
 * is made when a source is added to the poller, so nothing here fails later.
 * Who holds the poller's lock may use it; nobody else. */
#ifndef RT_DUES_H
#define RT_DUES_H

#include "rt_base.h"

struct rt_source;

struct rt_dues {
    struct rt_source **heap; /* [0] is the next that is due */
    uint32_t count, room;
};

void rt_dues_fini(struct rt_dues *dues);

/* Make room for so many sources.  False: no memory. */
bool rt_dues_reserve(struct rt_dues *dues, uint32_t sources);

/* Put src in, or move it, to where `when` belongs.  There is room. */
void rt_dues_put(struct rt_dues *dues, struct rt_source *src, uint64_t when);

/* Take src out, if it is in. */
void rt_dues_remove(struct rt_dues *dues, struct rt_source *src);

/* The next source that is due, or NULL; and when. */
struct rt_source *rt_dues_next(const struct rt_dues *dues, uint64_t *when);

#endif
