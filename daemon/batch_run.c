/* Running a plan: as many requests at once as the engine has places, never of more than two groups,
 * so that the next expert's weights come in while the last requests of this one end. */
#include "daemon/batch.h"

#include <poll.h>
#include <stdlib.h>

#include "daemon/engine_order.h"
#include "daemon/json_out.h"

#define WAIT_MS 500

struct slot {
    struct api_call *call; /* NULL = free */
    uint32_t at;           /* in plan.order */
    struct run *run;
};

struct run {
    struct batch_plan *plan;
    struct batch_journal *journal;
    struct batch_result *result;
    struct router_scratch *scratch;
    struct ring *finished; /* of struct slot *; each slot at most once */
    struct slot *slots;
    size_t slots_count, busy;
    uint32_t next;         /* in plan.order: the first that was not submitted */
    uint32_t next_group;   /* that `next` is in */
    uint32_t oldest_group; /* that is not done */
    uint32_t *left;        /* [groups]: requests not done */
    struct buf text;
};

/* Engine thread. A call has one or more requests; each ends once, and the last one's end is what
 * counts. */
static void on_notify(struct request *r)
{
    struct slot *s = r->owner;
    if (atomic_load_explicit(&r->state, memory_order_acquire) != REQUEST_DONE)
        return;
    if (!atomic_exchange(&r->notified, true))
        ring_push(s->run->finished, s);
}

/* ---- the end of a request
 * --------------------------------------------------------------------------- */

static void put_answer(struct run *r, const struct batch_line *l, const struct api_call *c,
                       const struct buf *body, const struct err *e)
{
    struct buf *out = &r->text;
    buf_clear(out);
    buf_puts(out, "{\"id\":\"batch_req_");
    buf_printf(out, "%u\",\"custom_id\":", l->no);
    json_put_str(out, l->custom_id);
    buf_printf(out, ",\"response\":{\"status_code\":%d,\"request_id\":",
               e->code == ERR_OK ? 200 : err_http_status(e->code));
    json_put_str(out, c->id);
    buf_puts(out, ",\"body\":");
    if (e->code == ERR_OK)
        buf_append(out, body->data, body->len);
    else
        api_put_error(out, e);
    buf_puts(out, "},\"error\":null}");
}

static void count_usage(struct run *r, const struct api_call *c, struct batch_group *g)
{
    struct api_usage u;
    api_call_usage(c, &u);
    r->result->prompt_tokens += u.prompt_tokens;
    r->result->completion_tokens += u.completion_tokens;
    for (size_t i = 0; i < c->requests_count; i++)
        g->waited |= c->requests[i]->account.load_bytes > 0;
}

static struct batch_group *group_of(struct batch_plan *p, uint32_t at, uint32_t *hint)
{
    while (at >= p->groups[*hint].first + p->groups[*hint].count)
        ++*hint;
    while (at < p->groups[*hint].first)
        --*hint;
    return &p->groups[*hint];
}

/* `refused`: why the engine did not take it; NULL = it ran. */
static enum err_code finish_slot(struct run *r, struct slot *s, const struct err *refused,
                                 struct err *e)
{
    struct batch_plan *p = r->plan;
    struct batch_line *l = &p->lines[p->order[s->at]];
    uint32_t group_idx = r->oldest_group;
    struct batch_group *g = group_of(p, s->at, &group_idx);
    struct buf body = {0};
    struct err why = {0};
    if (refused != NULL)
        why = *refused;
    else if (api_call_render(s->call, &body, &why) == ERR_OK && body.len > 0 &&
             body.data[body.len - 1] == '\n')
        body.len--; /* an answer is one line */
    put_answer(r, l, s->call, &body, &why);
    count_usage(r, s->call, g);
    enum err_code code =
        batch_journal_add(r->journal, p, p->order[s->at], why.code != ERR_OK, &r->text, e);
    buf_done(&body);
    api_call_close(&s->call);
    r->busy--;
    r->result->done++;
    r->result->failed += why.code != ERR_OK;
    r->left[group_idx]--;
    while (r->oldest_group < p->groups_count && r->left[r->oldest_group] == 0)
        r->oldest_group++;
    return code;
}

static enum err_code take_finished(struct run *r, struct err *e)
{
    struct slot *s;
    enum err_code code = ERR_OK;
    ring_drain_fd(r->finished);
    while (code == ERR_OK && (s = ring_pop(r->finished)) != NULL)
        if (s->call != NULL && api_call_done(s->call))
            code = finish_slot(r, s, NULL, e);
    return code;
}

/* ---- submitting
 * ---------------------------------------------------------------------------------------- */

static struct slot *free_slot(struct run *r)
{
    for (size_t i = 0; i < r->slots_count; i++)
        if (r->slots[i].call == NULL)
            return &r->slots[i];
    return NULL;
}

/* Two groups overlap only where both fit: else each would drive the other's weights out. */
static bool may_start(struct run *r)
{
    struct batch_plan *p = r->plan;
    group_of(p, r->next, &r->next_group);
    if (r->next_group <= r->oldest_group)
        return true;
    return r->next_group == r->oldest_group + 1 &&
           batch_cost_fits(p->server, &p->groups[r->oldest_group], &p->groups[r->next_group]);
}

/* A request that cannot even be given to the engine is a failed line, except for a full queue. */
static enum err_code submit_next(struct run *r, struct slot *s, bool *ret_full, struct err *e)
{
    struct batch_plan *p = r->plan;
    uint32_t retry_after_s;
    *s = (struct slot){.at = r->next, .run = r};
    enum err_code code =
        batch_line_call(p, &p->lines[p->order[r->next]], r->scratch, &r->text, &s->call, e);
    if (code != ERR_OK)
        return code;
    struct err why = {0};
    code = api_call_submit(s->call, on_notify, s, &retry_after_s, &why);
    if (code == ERR_QUEUE_FULL) {
        *ret_full = true;
        while (!api_call_idle(s->call)) /* those of its prompts that were taken are cancelled */
            poll(NULL, 0, 1);
        api_call_close(&s->call);
        return ERR_OK;
    }
    r->busy++;
    r->next++;
    if (code == ERR_OK)
        return ERR_OK;
    while (!api_call_idle(s->call))
        poll(NULL, 0, 1);
    return finish_slot(r, s, &why, e);
}

static enum err_code fill(struct run *r, struct err *e)
{
    struct slot *s;
    bool full = false;
    while (!full && r->next < r->plan->order_count && may_start(r) && (s = free_slot(r)) != NULL) {
        enum err_code code = submit_next(r, s, &full, e);
        if (code != ERR_OK)
            return code;
    }
    return ERR_OK;
}

static enum err_code run_all(struct run *r, const struct progress *progress, struct err *e)
{
    struct batch_plan *p = r->plan;
    enum err_code code = ERR_OK;
    while (code == ERR_OK && r->result->done < p->order_count) {
        code = fill(r, e);
        if (code != ERR_OK)
            break;
        struct pollfd fd = {.fd = ring_fd(r->finished), .events = POLLIN};
        poll(&fd, 1, WAIT_MS);
        code = take_finished(r, e);
        if (!progress_report(progress, "generating", p->finished_count + r->result->done,
                             p->finished_count + p->order_count))
            code = err_set(e, ERR_CANCELLED, "cancelled");
    }
    return code;
}

static void cancel_all(struct run *r)
{
    for (size_t i = 0; i < r->slots_count; i++) {
        if (r->slots[i].call == NULL)
            continue;
        api_call_cancel(r->slots[i].call);
        while (!api_call_idle(r->slots[i].call))
            poll(NULL, 0, 1);
        api_call_close(&r->slots[i].call);
    }
}

/* A request is DONE a moment before the engine's call of on_notify returns: with an order answered,
 * it has left all of them, and slots and ring may go. */
static void wait_for_engine(struct run *r)
{
    struct engine_order look = {.kind = ENGINE_ORDER_LOOK};
    enum err_code code = engine_order_run(r->plan->server->engine, &look, NULL);
    (void)code; /* an engine that is closing calls nobody */
}

static enum err_code run_open(struct batch_plan *p, struct batch_journal *j,
                              struct batch_result *result, struct run *ret, struct err *e)
{
    const struct conf *c = p->server->conf;
    struct run r = {.plan = p, .journal = j, .result = result};
    r.slots_count = BASE_MIN((size_t)c->sched_max_sequences + 4, (size_t)c->sched_max_queue);
    r.slots = mem_array(r.slots_count, sizeof *r.slots);
    r.left = mem_array(p->groups_count + 1, sizeof *r.left);
    for (size_t i = 0; i < p->groups_count; i++)
        r.left[i] = p->groups[i].count;
    if (p->server->head != NULL)
        r.scratch = router_scratch_open(p->server->head);
    *ret = r;
    return ring_open(&ret->finished, r.slots_count * API_PROMPTS_MAX, e);
}

enum err_code batch_run(struct batch_plan *p, struct batch_journal *j,
                        const struct progress *progress, struct batch_result *ret, struct err *e)
{
    struct run r;
    struct memtier_stats before, after;
    uint64_t from = clock_ns();
    *ret = (struct batch_result){0};
    memtier_stats(p->server->memtier, &before);
    enum err_code code = run_open(p, j, ret, &r, e);
    if (code == ERR_OK)
        code = run_all(&r, progress, e);
    cancel_all(&r);
    wait_for_engine(&r);
    memtier_stats(p->server->memtier, &after);
    ret->measured.segment_loads = after.loads - before.loads;
    ret->measured.bytes = after.load_bytes - before.load_bytes;
    ret->host_ns = clock_ns() - from;
    ring_close(&r.finished);
    router_scratch_close(&r.scratch);
    buf_done(&r.text);
    free(r.slots);
    free(r.left);
    return code;
}
