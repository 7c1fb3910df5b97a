/* offloop._core.Batch: a pipeline that was sent, and its replies.
 *
 * For: one execute() of a pipeline.  It takes the commands and their bytes from
 * the pipeline (pipeline_type.h), sends them as one job, and turns the replies
 * into Python objects in steps of a bounded size, so that a hundred thousand of
 * them do not hold up the loop.
 *
 *     batch = pipeline._take(transaction)
 *     await batch.send()                       # the job: one wake-up
 *     while not batch.convert(n): ...          # replies to batch.results
 *     while (found := batch.apply(callbacks, n)) is not True: ...
 *
 * Correct: the native part belongs to the job while the job is out, and comes
 * back with it; a batch that is dropped meanwhile (its task was cancelled) leaves
 * nothing behind, since the job frees what it still has. */
#ifndef OFFLOOP_BATCH_TYPE_H
#define OFFLOOP_BATCH_TYPE_H

#include "../redis/rds_pipeline.h"
#include "channel_type.h"
#include "core.h"

/* A queued command as it was given. */
struct core_entry {
    PyObject *values; /* tuple: positional arguments, then those by name */
    PyObject *names;  /* of the latter, a tuple; or the options, a dict; or NULL */
    PyObject *method; /* the Method that was called with them, or NULL: execute_command */
    uint32_t nargs;   /* positional ones */
    bool raw;         /* NEVER_DECODE */
};

struct core_entries {
    struct core_entry *at;
    size_t count, cap;
};

/* Room for one more; NULL with an exception set.  It counts at once. */
struct core_entry *core_entries_add(struct core_entries *entries);
void core_entries_clear(struct core_entries *entries);
int core_entries_visit(const struct core_entries *entries, visitproc visit, void *arg);

/* The command's name, borrowed. */
PyObject *core_entry_name_borrowed(const struct core_entry *entry);

/* (args, options) as redis-py keeps them; a new reference. */
PyObject *core_entry_pair(const struct core_entry *entry);
/* All of them as a list. */
PyObject *core_entries_list(const struct core_entries *entries);

/* A batch that takes the entries and the sealed pipeline over, on success only. */
PyObject *core_batch_new(struct core_channel *channel, struct core_entries *entries,
                         struct rds_pipeline *pipeline);

extern PyType_Spec core_batch_spec;

#endif
