#include "rds_slots.h"

void rds_slots_fini(struct rds_slots *slots)
{
    struct rds_slots *block, *next;

    for (block = atomic_load(&slots->next); block != NULL; block = next) {
        next = atomic_load(&block->next);
        free(block);
    }
    atomic_store(&slots->next, NULL);
}

struct rds_lease **rds_slots_take(struct rds_slots *slots)
{
    struct rds_slots *block = slots, *next;
    unsigned i;

    while (block->used == RDS_SLOTS) {
        next = atomic_load(&block->next);
        if (next == NULL) {
            next = calloc(1, sizeof *next);
            if (next == NULL)
                return NULL;
            atomic_store(&block->next, next);
        }
        block = next;
    }
    for (i = 0; block->lease[i] != NULL; i++) {
    }
    block->used++;
    return &block->lease[i];
}

void rds_slots_clear(struct rds_slots *slots, struct rds_lease **slot)
{
    struct rds_slots *block = slots;

    *slot = NULL;
    while (slot < block->lease || slot >= block->lease + RDS_SLOTS)
        block = atomic_load(&block->next);
    block->used--;
}

void rds_slots_for_each(struct rds_slots *slots, void (*act)(struct rds_lease *lease))
{
    struct rds_slots *block;
    unsigned i;

    for (block = slots; block != NULL; block = atomic_load(&block->next)) {
        for (i = 0; i < RDS_SLOTS; i++) {
            if (block->lease[i] != NULL)
                act(block->lease[i]);
        }
    }
}

struct rds_lease *rds_slots_find(struct rds_slots *slots, bool (*is)(struct rds_lease *lease))
{
    struct rds_slots *block;
    unsigned i;

    for (block = slots; block != NULL; block = atomic_load(&block->next)) {
        for (i = 0; i < RDS_SLOTS; i++) {
            if (block->lease[i] != NULL && is(block->lease[i]))
                return block->lease[i];
        }
    }
    return NULL;
}
