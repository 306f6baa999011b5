/* Steps: what runs next, and handing its tokens out. */
#include <stdlib.h>
#include <string.h>

#include "daemon/engine_private.h"

/* ---- choosing ---------------------------------------------------------------------------------------------------------- */

void engine_close_step(struct open_step *o)
{
    for (uint32_t i = 0; i < o->lanes_count; i++)
        o->lanes[i]->in_step = false;
    expert_step_close(&o->step);
    o->lanes_count = 0;
}

static bool lane_runnable(const struct lane *l)
{
    return l->request && !l->in_step && l->load == NULL;
}

static void measure_base(struct engine *g, struct sched_base *b, struct expert *ex)
{
    size_t count;
    const uint32_t *segs = expert_segments(ex, &count);
    for (size_t i = expert_adapter_segments(ex); i < count; i++) {
        uint64_t bytes = memtier_segment_bytes(g->opt.memtier, segs[i]);
        if (memtier_where(g->opt.memtier, segs[i]) == MEMTIER_HBM)
            b->resident_bytes += bytes;
        else
            b->missing_bytes += bytes;
    }
}

static void make_view(struct engine *g, struct sched_view *v)
{
    for (uint32_t i = 0; i < g->bases_count; i++) {
        struct sched_base *b = &g->bases[i];
        *b = (struct sched_base){.served_ns = b->served_ns, .waiting_ns = b->waiting_ns};
    }
    for (uint32_t i = 0; i < g->opt.max_sequences; i++) {
        struct lane *l = &g->lanes[i];
        if (l->request == NULL)
            continue;
        struct sched_base *b = &g->bases[l->base_idx];
        if (b->runnable == 0 && !b->open)
            measure_base(g, b, l->request->expert);
        b->runnable += lane_runnable(l);
        b->open |= l->in_step;
        b->priority = BASE_MAX(b->priority, l->request->priority);
    }
    *v = (struct sched_view){.bases = g->bases, .count = g->bases_count, .last = g->last_base,
                             .room_bytes = memtier_room(g->opt.memtier),
                             .max_defer_ns = (uint64_t)g->opt.max_defer_ms * 1000000};
}

/* Decode tokens of every runnable sequence of the base, then prompt chunks within the budget. */
static uint32_t fill_items(struct engine *g, uint32_t base_idx, struct open_step *o)
{
    uint32_t n = 0, decoding = 0;
    for (int prefill = 0; prefill < 2; prefill++) {
        uint32_t budget = sched_prefill_budget(g->opt.prefill_chunk, decoding);
        for (uint32_t i = 0; i < g->opt.max_sequences; i++) {
            struct lane *l = &g->lanes[i];
            if (!lane_runnable(l) || l->base_idx != base_idx)
                continue;
            size_t pending = sequence_pending(l->seq);
            if ((pending > 1) != (prefill == 1) || (prefill && budget == 0))
                continue;
            uint32_t tokens = (uint32_t)(prefill ? BASE_MIN(pending, budget) : 1);
            budget -= prefill ? tokens : 0;
            decoding += prefill ? 0 : 1;
            g->items[n] = (struct step_item){l->seq, tokens};
            o->lanes[n++] = l;
        }
    }
    return n;
}

static void note_switch(struct engine *g, struct open_step *o)
{
    bool switched = false;
    struct step_stats st;
    expert_step_stats(o->step, &st);
    g->step_no++;
    for (uint32_t i = 0; i < o->lanes_count; i++) {
        struct request *r = o->lanes[i]->request;
        uint64_t *seen = &g->expert_step_no[expert_index(r->expert)];
        bool fresh = *seen + 1 < g->step_no;
        switched |= fresh;
        if (r->account.first_token_ns == 0)
            r->account.switched |= fresh;
        *seen = g->step_no;
        engine_set_state(r, st.origin == MEMTIER_HBM ? REQUEST_RUNNING : REQUEST_LOADING);
    }
    if (!switched)
        return;
    lock_take(&g->stats_lock);
    g->stats.switches[st.origin]++;
    hist_add(&g->stats.switch_hist[st.origin], clock_ns() - o->decided_ns);
    lock_drop(&g->stats_lock);
}

static void fail_lanes(struct engine *g, struct open_step *o, const struct err *e)
{
    struct lane *lanes[256];
    uint32_t n = BASE_MIN(o->lanes_count, (uint32_t)BASE_COUNT(lanes));
    memcpy(lanes, o->lanes, n * sizeof(*lanes));
    if (o->step)
        engine_close_step(o);
    for (uint32_t i = 0; i < n; i++)
        engine_fail_lane(g, lanes[i], e);
}

static struct open_step *free_step(struct engine *g)
{
    for (uint32_t i = 0; i < STEPS_MAX; i++)
        if (g->open[i].step == NULL)
            return &g->open[i];
    return NULL;
}

/* Something is pinned now that will be released without our doing. */
static bool pins_elsewhere(const struct engine *g)
{
    for (uint32_t i = 0; i < STEPS_MAX; i++)
        if (g->open[i].step)
            return true;
    for (uint32_t i = 0; i < g->opt.max_sequences; i++)
        if (g->lanes[i].load)
            return true;
    return g->warm != NULL;
}

/* A batch whose adapters do not fit together runs in parts: fewer lanes until it fits or one is left. */
static enum err_code open_step(struct engine *g, struct open_step *o, struct err *e)
{
    for (;;) {
        enum err_code code = expert_step_open(g->opt.experts, g->items, o->lanes_count, &o->step, e);
        bool too_much = code == ERR_NO_MEMORY || (code == ERR_BUSY && !pins_elsewhere(g));
        if (!too_much || o->lanes_count == 1)
            return code;
        o->lanes_count = (o->lanes_count + 1) / 2;
    }
}

bool engine_open_next(struct engine *g, uint64_t *ret_wake_ns)
{
    struct sched_view v;
    struct err e = {0};
    struct open_step *o = free_step(g);
    uint64_t now = clock_ns();
    *ret_wake_ns = UINT64_MAX;
    if (o == NULL)
        return false;
    make_view(g, &v);
    uint32_t base = sched_next(&v, now);
    if (base == UINT32_MAX) {
        *ret_wake_ns = sched_wake_ns(&v, now);
        return false;
    }
    o->decided_ns = now;
    o->started = false;
    o->lanes_count = fill_items(g, base, o);
    enum err_code code = open_step(g, o, &e);
    if (code == ERR_BUSY && pins_elsewhere(g)) {
        *ret_wake_ns = now + 1000000; /* what is pinned now will be released by an open step */
        return false;
    }
    if (code != ERR_OK) {
        fail_lanes(g, o, &e);
        return true;
    }
    for (uint32_t i = 0; i < o->lanes_count; i++)
        o->lanes[i]->in_step = true;
    g->last_base = base;
    note_switch(g, o);
    return true;
}

/* ---- delivering ------------------------------------------------------------------------------------------------------------ */

static void note_token(struct engine *g, struct lane *l, uint64_t now)
{
    struct request_account *a = &l->request->account;
    if (a->first_token_ns == 0)
        a->first_token_ns = now;
    lock_take(&g->stats_lock);
    if (l->last_token_ns)
        hist_add(&g->stats.inter_token_hist, now - l->last_token_ns);
    g->expert_tokens[expert_index(l->request->expert)]++;
    lock_drop(&g->stats_lock);
    l->last_token_ns = now;
}

/* A new token of a lane: show what became visible, end the lane where it ends. */
static void deliver_token(struct engine *g, struct lane *l, uint64_t now)
{
    struct request *r = l->request;
    int32_t id = sequence_last_token(l->seq);
    bool hit_limit, done = sequence_done(l->seq, &hit_limit);
    note_token(g, l, now);
    if (done && !hit_limit) { /* an end token: not part of the answer */
        engine_finish_lane(g, l, REQUEST_FINISH_STOP, false);
        return;
    }
    r->account.completion_tokens++;
    buf_clear(&g->visible);
    bool stop = output_push(&l->output, id, &g->visible);
    engine_publish(l, id, &g->visible, REQUEST_FINISH_NONE, true);
    if (stop)
        engine_finish_lane(g, l, REQUEST_FINISH_STOP, true);
    else if (done)
        engine_finish_lane(g, l, REQUEST_FINISH_LENGTH, false);
    else if (r->notify)
        r->notify(r);
}

static void account_step(struct lane *l, const struct step_stats *st, bool prefill)
{
    struct request_account *a = &l->request->account;
    a->load_ns += st->load_wait_ns;
    a->load_bytes += st->load_bytes;
    a->origin = BASE_MAX(a->origin, st->origin);
    a->node_ns += st->node_ns;
    if (prefill)
        a->prefill_ns += st->run_ns;
}

static void note_step(struct engine *g, const struct step_stats *st, uint64_t decided_ns, uint32_t decoded)
{
    lock_take(&g->stats_lock);
    g->stats.steps++;
    g->stats.tokens_decode += decoded;
    g->stats.tokens_prefill += st->tokens - decoded;
    g->stats.node_ns += st->node_ns;
    hist_add(&g->stats.step_hist, clock_ns() - decided_ns);
    rdu_node_stats(g->opt.node, &g->stats.rdu);
    g->stats.base_reads = g->stats.rdu.base_reads;
    lock_drop(&g->stats_lock);
}

static void deliver(struct engine *g, struct open_step *o)
{
    struct step_stats st;
    struct lane *lanes[256];
    uint32_t n = o->lanes_count, decoded = 0;
    uint64_t now = clock_ns();
    expert_step_stats(o->step, &st);
    for (uint32_t i = 0; i < n; i++) {
        lanes[i] = o->lanes[i];
        bool prefill = lanes[i]->last_token_ns == 0; /* still at its prompt */
        decoded += prefill ? 0 : 1;
        account_step(lanes[i], &st, prefill);
    }
    struct sched_base *b = &g->bases[lanes[0]->base_idx];
    b->served_ns = b->waiting_ns = now;
    uint64_t decided_ns = o->decided_ns;
    engine_close_step(o);
    note_step(g, &st, decided_ns, decoded);
    for (uint32_t i = 0; i < n; i++) {
        struct lane *l = lanes[i];
        bool limit, done = sequence_done(l->seq, &limit);
        if (engine_lane_cancelled(g, l))
            engine_finish_lane(g, l, REQUEST_FINISH_CANCELLED, false);
        else if (done && sequence_generated(l->seq) == 0)
            engine_finish_lane(g, l, REQUEST_FINISH_LENGTH, false); /* max_tokens 0 */
        else if (sequence_generated(l->seq) > 0 && sequence_pending(l->seq) == 1)
            deliver_token(g, l, now);
    }
}

bool engine_advance(struct engine *g)
{
    bool moved = false;
    for (uint32_t i = 0; i < STEPS_MAX; i++) {
        struct open_step *o = &g->open[i];
        struct err e = {0};
        if (o->step == NULL)
            continue;
        switch (expert_step_advance(o->step, &e)) {
        case STEP_DONE:
            deliver(g, o);
            moved = true;
            break;
        case STEP_FAILED:
            fail_lanes(g, o, &e);
            moved = true;
            break;
        case STEP_BLOCKED:
            break;
        }
    }
    return moved;
}

