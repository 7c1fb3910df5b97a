/* The one error convention of the runtime and redis layers: a function returns
 * 0 or a negative enum rt_err.  What a job failed with is kept in the job, with
 * a text for the person who reads it. */
#ifndef RT_ERR_H
#define RT_ERR_H

enum rt_err {
    RT_OK = 0,
    RT_ENOMEM = -1,     /* no memory */
    RT_ESYS = -2,       /* a system call failed; errno says which way */
    RT_EINVAL = -3,     /* an argument is out of range */
    RT_EFULL = -4,      /* a bound is reached; nothing was taken */
    RT_ECLOSED = -5,    /* the pool or channel is closed; nothing was done */
    RT_ECANCELLED = -6, /* cancelled by its owner */
    RT_ETIMEOUT = -7,   /* its deadline passed */
    RT_ECONNECT = -8,   /* no connection could be made */
    RT_ELOST = -9,      /* the connection broke */
    RT_EPROTOCOL = -10, /* the peer sent what the protocol does not allow */
    RT_ETOOBIG = -11,   /* the reply is over the configured cap */
    RT_EAUTH = -12,     /* the server refused the credentials */
    RT_EREFUSED = -13,  /* the server refused something else at connect time */
    RT_ETLS = -16,      /* the peer could not be trusted, or does not speak TLS */
    RT_EBUSY = -15,     /* the server refused for now: starting, or full */
    RT_ECREDENTIALS = -14, /* the owner could not provide credentials */
};

/* A short text for err; never NULL.
 * Thread: any.  Blocks: no. */
const char *rt_strerror(int err);

#endif
