#include "rds_pipeline.h"

static const char multi[] = "*1\r\n$5\r\nMULTI\r\n";
static const char exec[] = "*1\r\n$4\r\nEXEC\r\n";

#define HEAD (sizeof multi - 1)
#define FIRST_WIRE ((size_t)1 << 10)

int rds_pipeline_new(struct rds_pipeline **out)
{
    struct rds_pipeline *p = calloc(1, sizeof *p);

    if (p == NULL)
        return RT_ENOMEM;
    p->len = HEAD; /* so that a transaction moves nothing */
    p->patience = RT_NEVER;
    *out = p;
    return RT_OK;
}

static void free_first(struct rds_pipeline *p)
{
    struct rds_page *page = p->first;

    p->first = page->next;
    if (p->first == NULL)
        p->last = NULL;
    rds_arena_free(&page->arena);
    free(page);
}

void rds_pipeline_drop_replies(struct rds_pipeline *p)
{
    while (p->first != NULL)
        free_first(p);
}

void rds_pipeline_free(struct rds_pipeline *p)
{
    if (p == NULL)
        return;
    rds_pipeline_drop_replies(p);
    free(p->wire);
    free(p);
}

/* ---- commands ------------------------------------------------------------------ */

char *rds_pipeline_room(struct rds_pipeline *p, size_t size)
{
    size_t need = p->len + size, cap = p->cap > 0 ? p->cap : FIRST_WIRE;
    char *grown;

    if (need <= p->cap)
        return p->wire + p->len;
    while (cap < need)
        cap *= 2;
    grown = realloc(p->wire, cap);
    if (grown == NULL)
        return NULL;
    p->wire = grown;
    p->cap = cap;
    return p->wire + p->len;
}

void rds_pipeline_added(struct rds_pipeline *p, size_t size)
{
    RT_ASSERT(p->len + size <= p->cap);
    p->len += size;
    p->commands++;
}

int rds_pipeline_seal(struct rds_pipeline *p, bool transaction)
{
    char *at;

    p->transaction = transaction;
    if (!transaction)
        return RT_OK;
    at = rds_pipeline_room(p, sizeof exec - 1);
    if (at == NULL)
        return RT_ENOMEM;
    memcpy(at, exec, sizeof exec - 1);
    rds_pipeline_added(p, sizeof exec - 1);
    memcpy(p->wire, multi, HEAD);
    p->commands++;
    return RT_OK;
}

void rds_pipeline_tie(struct rds_pipeline *p, struct rds_job *job, uint64_t patience)
{
    size_t from = p->transaction ? 0 : HEAD;

    RT_CHECK(job->pipeline == NULL && p->commands > 0);
    p->patience = patience;
    job->pipeline = p;
    job->awaited = p->commands;
    job->request = p->wire + from;
    job->request_len = p->len - from;
}

struct rds_pipeline *rds_pipeline_untie(struct rds_job *job)
{
    struct rds_pipeline *p = job->pipeline;

    job->pipeline = NULL;
    job->request = job->inline_bytes;
    job->request_len = 0;
    return p;
}

/* ---- what the exchange does ---------------------------------------------------- */

/* The number in a RESP header at *p, which moves behind its line. */
static size_t header(const char **p)
{
    size_t value = 0;

    for (++*p; **p != '\r'; ++*p)
        value = value * 10 + (size_t)(**p - '0');
    *p += 2;
    return value;
}

bool rds_pipeline_is_out(struct rds_pipeline *p, uint32_t index, uint64_t sent)
{
    const char *request = p->wire + (p->transaction ? 0 : HEAD);

    while (p->passed <= index) {
        const char *at = request + p->passed_len;
        size_t words = header(&at);

        while (words-- > 0) {
            size_t len = header(&at);

            at += len + 2;
        }
        p->passed_len = (size_t)(at - request);
        p->passed++;
    }
    return p->passed_len <= sent;
}

static struct rds_page *new_page(struct rds_pipeline *p)
{
    uint32_t cap = p->commands < RDS_PAGE / 64 ? p->commands * 64 : RDS_PAGE;
    struct rds_page *page = calloc(1, sizeof *page);
    char *data;

    if (page == NULL)
        return NULL;
    data = malloc((size_t)cap + 256);
    if (data == NULL) {
        free(page);
        return NULL;
    }
    rds_arena_init(&page->arena, data, cap + 256);
    page->arena.heap = true;
    if (p->last != NULL)
        p->last->next = page;
    else
        p->first = page;
    p->last = page;
    return page;
}

struct rds_arena *rds_pipeline_begin(struct rds_pipeline *p)
{
    struct rds_page *page = p->last;

    if ((page == NULL || page->arena.len >= RDS_PAGE) && (page = new_page(p)) == NULL)
        return NULL;
    p->reply_at = page->arena.len;
    return &page->arena;
}

void rds_pipeline_fail_reply(struct rds_pipeline *p, const char *text)
{
    struct rds_arena *arena = &p->last->arena;

    arena->len = p->reply_at;
    rds_arena_add_text(arena, RDS_FAILURE, text);
}

void rds_pipeline_forget_wire(struct rds_pipeline *p, struct rds_job *job)
{
    free(p->wire);
    p->wire = NULL;
    p->cap = 0;
    job->request = job->inline_bytes;
    job->request_len = 0;
}

const char *rds_pipeline_say(char *out, size_t size, const char *text)
{
    static const char word[] = "the command";
    const char *at;
    size_t len = 0;

    out[0] = '\0';
    for (; (at = strstr(text, word)) != NULL && len < size; text = at + sizeof word - 1)
        len += (size_t)snprintf(out + len, size - len, "%.*sthe pipeline", (int)(at - text), text);
    if (len < size)
        snprintf(out + len, size - len, "%s", text);
    return out;
}

/* ---- what the reader does ------------------------------------------------------ */

const struct rds_arena *rds_pipeline_replies(struct rds_pipeline *p)
{
    while (p->first != NULL && p->read_at >= p->first->arena.len) {
        free_first(p);
        p->read_at = 0;
    }
    return p->first != NULL ? &p->first->arena : NULL;
}
