/* A habit: something that is tried only where it pays.
 *
 * For: looking for the next thing for a moment before a thread goes to sleep.  Where the
 * thing comes soon that saves falling asleep and being woken, which costs more than the
 * looking; where it does not it wastes the moment.
 *
 * A thing that came soon is worth a point; a late one costs one, none at all two.  Below
 * zero it is left out for 1, 2, 4 ... occasions, up to a bound, and then has a few points
 * again: more than one try, since the first one may only warm up the other side.  Each
 * success halves the next pause.
 *
 * Thread: one. */
#ifndef RT_HABIT_H
#define RT_HABIT_H

#include "rt_base.h"

#define RT_HABIT_BEST 8
#define RT_HABIT_AGAIN 2 /* points after a pause */

struct rt_habit {
    int score;
    unsigned skip, pause; /* occasions to leave out: of this pause, and its length */
    unsigned longest;     /* pause */
};

static inline void rt_habit_init(struct rt_habit *habit, unsigned longest)
{
    habit->score = RT_HABIT_BEST;
    habit->skip = habit->pause = 0;
    habit->longest = longest;
}

/* An occasion: whether to try. */
static inline bool rt_habit_tries(struct rt_habit *habit)
{
    if (habit->score >= 0)
        return true;
    if (habit->skip > 0) {
        habit->skip--;
        return false;
    }
    habit->score = RT_HABIT_AGAIN;
    return true;
}

/* What a try was worth: whether the thing came, and soon. */
static inline void rt_habit_learn(struct rt_habit *habit, bool came, bool soon)
{
    if (came && soon) {
        if (habit->score < RT_HABIT_BEST)
            habit->score++;
        habit->pause /= 2;
        return;
    }
    habit->score -= came ? 1 : 2;
    if (habit->score >= 0)
        return;
    habit->pause = habit->pause == 0 ? 1 : 2 * habit->pause;
    if (habit->pause > habit->longest)
        habit->pause = habit->longest;
    habit->skip = habit->pause;
}

#endif
