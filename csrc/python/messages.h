/* Pub/sub's short cut: a published message in one call.
 *
 * For: offloop.redis.PubSub, where a message costs more in redis-py's layers than on the
 * way there.  _next_message(pubsub) gives the next one as the dict that redis-py makes of
 * it, or what to wait for until there is one; a listener (listen.h) asks for one after the
 * other.
 *
 * Correct: nothing of redis-py's is left out that anybody could see.  Before each message
 * it is looked whether somebody has put something of his own in the place of what is
 * left out: a method of PubSub (in a subclass, on the class or on the object), a push
 * handler, the log of pushes, metrics; and of the connection its read_response or parser
 * or health checks, which a listener looks at once in TRUSTED messages, since with a
 * thousand of them each look is at memory that nobody else has in use.  Then, and for
 * every reply that is no published message, redis-py's own code does it. */
#ifndef OFFLOOP_MESSAGES_H
#define OFFLOOP_MESSAGES_H

#include "core.h"
#include "lease_type.h"

/* What is known of a PubSub's connection from one message to the next; zeroed at first. */
struct core_ear {
    const PyObject *connection; /* borrowed, and only compared: whose lease it is */
    struct core_lease *lease;   /* owned */
    unsigned trusted;           /* messages for which it needs no look */
    unsigned version;           /* of PubSub's type, or 0, */
    Py_ssize_t attributes;      /* and how many the object had, when its methods were
                                 * redis-py's */
};

/* What obj has under name itself or by its class, as PyObject_GetAttr() finds it but for
 * what a class computes; borrowed.  NULL: nothing, or an exception is set.
 * It is a fraction of the cost, and of such looks there are a dozen for each message. */
PyObject *core_own_value(PyObject *obj, PyObject *name);

/* The next message of pubsub, as _next_message() gives it.
 * Thread: the loop's.  GIL: held.  Blocks: no.
 * Ownership: a new reference, or NULL with an exception set. */
PyObject *core_message_next(struct core_state *st, PyObject *pubsub, PyObject *timeout,
                            struct core_ear *ear);

extern PyMethodDef core_messages_functions[];

#endif
