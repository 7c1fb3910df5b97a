#include "rt_err.h"

const char *rt_strerror(int err)
{
    switch ((enum rt_err)err) {
    case RT_OK: return "no error";
    case RT_ENOMEM: return "out of memory";
    case RT_ESYS: return "a system call failed";
    case RT_EINVAL: return "argument out of range";
    case RT_EFULL: return "queue full";
    case RT_ECLOSED: return "closed";
    case RT_ECANCELLED: return "cancelled";
    case RT_ETIMEOUT: return "timed out";
    case RT_ECONNECT: return "could not connect";
    case RT_ELOST: return "connection lost";
    case RT_EPROTOCOL: return "protocol error";
    case RT_ETOOBIG: return "reply too large";
    case RT_EAUTH: return "authentication failed";
    case RT_EREFUSED: return "refused by the server";
    case RT_EBUSY: return "refused by the server for now";
    case RT_ETLS: return "no encrypted connection";
    case RT_ECREDENTIALS: return "no credentials";
    }
    return "unknown error";
}
