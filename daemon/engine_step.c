/* Steps: what runs next, and handing its tokens out. */
#include <stdio.h>
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
    return l->request && !l->in_step && l->load == NULL && !l->parked && l->leader == NULL;
}

static void measure_base(struct engine *g, struct sched_base *b, struct expert *ex)
{
    size_t count;
    const uint32_t *segs = expert_segments(ex, &count);
    bool held = g->holding && expert_base_index(ex) == expert_base_index(g->opt.generalist);
    for (size_t i = expert_adapter_segments(ex); i < count; i++) {
        uint64_t bytes = memtier_segment_bytes(g->opt.memtier, segs[i]);
        if (memtier_where(g->opt.memtier, segs[i]) == MEMTIER_HBM)
            b->resident_bytes += held ? 0 : bytes;
        else
            b->missing_bytes += bytes;
    }
}

static void make_view(struct engine *g, struct sched_view *v)
{
    for (uint32_t i = 0; i < g->bases_count; i++) {
        struct sched_base *b = &g->bases[i];
        *b = (struct sched_base){.served_ns = b->served_ns, .waiting_ns = b->waiting_ns,
                                 .loaded_ns = b->loaded_ns};
    }
    for (uint32_t i = 0; i < g->lanes_top; i++) {
        struct lane *l = &g->lanes[i];
        if (l->request == NULL)
            continue;
        struct sched_base *b = &g->bases[l->base_idx];
        if (b->missing_bytes + b->resident_bytes == 0) /* once: a base's first lane may not be runnable */
            measure_base(g, b, l->request->expert);
        b->runnable += lane_runnable(l);
        b->open |= l->in_step;
        b->priority = BASE_MAX(b->priority, l->request->priority);
    }
    *v = (struct sched_view){.bases = g->bases, .count = g->bases_count, .last = g->last_base,
                             .room_bytes = memtier_room(g->opt.memtier),
                             .max_defer_ns = (uint64_t)g->opt.max_defer_ms * 1000000};
}

/* Sequences of other bases whose next token this step delays. A base that must load first waits longer for
 * that than for a chunk. */
static uint32_t decoding_elsewhere(const struct engine *g, uint32_t base_idx)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < g->lanes_top; i++) {
        const struct lane *l = &g->lanes[i];
        n += lane_runnable(l) && l->base_idx != base_idx && sequence_pending(l->seq) == 1 &&
             g->bases[l->base_idx].missing_bytes == 0;
    }
    return n;
}

/* The oldest lane of the base with prompt left that came after admission `after`. */
static struct lane *next_prompt(struct engine *g, uint32_t base_idx, uint64_t after)
{
    struct lane *best = NULL;
    for (uint32_t i = 0; i < g->lanes_top; i++) {
        struct lane *l = &g->lanes[i];
        if (lane_runnable(l) && l->base_idx == base_idx && sequence_pending(l->seq) > 1 &&
            l->admission_no > after && (best == NULL || l->admission_no < best->admission_no))
            best = l;
    }
    return best;
}

static void add_item(struct engine *g, struct open_step *o, struct lane *l, uint32_t tokens)
{
    g->items[o->lanes_count] = (struct step_item){l->seq, tokens};
    o->lanes[o->lanes_count++] = l;
}

/* Somebody in the step computes the page it needs next: it waits for that instead of doing the same. */
static bool waits_for_page(const struct open_step *o, const struct lane *l)
{
    for (uint32_t i = 0; i < o->lanes_count; i++)
        if (sequence_shares_next_page(l->seq, o->lanes[i]->seq))
            return true;
    return false;
}

/* Few sequences leave the arithmetic idle while weights are read: guesses are checked in its shade. */
static void guess(struct engine *g, struct open_step *o)
{
    if (g->opt.draft_tokens == 0 || o->lanes_count > ENGINE_DRAFT_LANES || atomic_load(&g->running) > ENGINE_DRAFT_LANES)
        return;
    for (uint32_t i = 0; i < o->lanes_count; i++)
        (void)sequence_draft(o->lanes[i]->seq, g->opt.draft_tokens);
}

/* Decode tokens of every runnable sequence of the base, then prompt chunks within the budget, the oldest
 * prompt first: lanes are reused, so going by their index would let new requests overtake for ever. */
static void fill_items(struct engine *g, uint32_t base_idx, struct open_step *o)
{
    uint64_t after = 0;
    o->lanes_count = 0;
    for (uint32_t i = 0; i < g->lanes_top; i++) {
        struct lane *l = &g->lanes[i];
        if (lane_runnable(l) && l->base_idx == base_idx && sequence_pending(l->seq) == 1)
            add_item(g, o, l, 1);
    }
    guess(g, o);
    uint32_t decoding = o->lanes_count + decoding_elsewhere(g, base_idx);
    uint32_t budget = sched_prefill_budget(g->opt.prefill_chunk, decoding, &g->pace);
    for (struct lane *l; budget > 0 && (l = next_prompt(g, base_idx, after)) != NULL; after = l->admission_no) {
        engine_note_reused(g, sequence_adopt(l->seq));
        if (waits_for_page(o, l))
            continue;
        uint32_t tokens = (uint32_t)BASE_MIN(sequence_pending(l->seq), budget);
        add_item(g, o, l, tokens);
        budget -= tokens;
    }
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
    o->switched = switched;
    o->origin = st.origin;
    if (!switched)
        return;
    lock_take(&g->stats_lock);
    g->stats.switches[st.origin]++;
    lock_drop(&g->stats_lock);
}

/* The step's first launch, at now_ns: its weights are arriving. */
static void note_start(struct engine *g, struct open_step *o, uint64_t now_ns)
{
    struct step_stats st;
    expert_step_stats(o->step, &st);
    if (o->started || st.run_ns == 0)
        return;
    o->started = true;
    for (uint32_t i = 0; i < o->lanes_count; i++)
        engine_set_state(o->lanes[i]->request, REQUEST_RUNNING);
    if (!o->switched)
        return;
    lock_take(&g->stats_lock);
    hist_add(&g->stats.switch_hist[o->origin], now_ns - o->decided_ns);
    lock_drop(&g->stats_lock);
}

static void fail_lanes(struct engine *g, struct open_step *o, const struct err *e)
{
    for (uint32_t i = 0; i < o->lanes_count; i++)
        engine_fail_lane(g, o->lanes[i], e);
}

static bool lane_lost(const struct engine *g, const struct lane *l)
{
    size_t count;
    const uint32_t *segs = expert_segments(l->request->expert, &count);
    for (size_t i = 0; i < count; i++)
        if (memtier_failure(g->opt.memtier, segs[i], NULL))
            return true;
    return false;
}

/* A load failed for good: whoever needs it ends, the rest of the batch goes on. */
static void fail_step(struct engine *g, struct open_step *o, const struct err *e)
{
    struct lane *lanes[ENGINE_SEQUENCES_MAX];
    uint32_t n = o->lanes_count, lost = 0;
    memcpy(lanes, o->lanes, n * sizeof(*lanes));
    for (uint32_t i = 0; i < n; i++)
        lost += lane_lost(g, lanes[i]);
    engine_close_step(o);
    for (uint32_t i = 0; i < n; i++)
        if (lost == 0 || lane_lost(g, lanes[i]))
            engine_fail_lane(g, lanes[i], e);
}

static struct open_step *free_step(struct engine *g)
{
    for (uint32_t i = 0; i < STEPS_MAX; i++)
        if (g->open[i].step == NULL)
            return &g->open[i];
    return NULL;
}

static void reverse(struct engine *g, struct open_step *o, uint32_t from, uint32_t to)
{
    for (; from + 1 < to; from++, to--) {
        struct lane *l = o->lanes[from];
        struct step_item item = g->items[from];
        o->lanes[from] = o->lanes[to - 1];
        g->items[from] = g->items[to - 1];
        o->lanes[to - 1] = l;
        g->items[to - 1] = item;
    }
}

/* The batch from another lane on, so that each comes first in turn. */
static void rotate(struct engine *g, struct open_step *o, uint32_t by)
{
    by %= o->lanes_count;
    reverse(g, o, 0, by);
    reverse(g, o, by, o->lanes_count);
    reverse(g, o, 0, o->lanes_count);
}

/* A batch whose adapters do not fit together runs in parts: fewer lanes until it fits or one is left. */
static enum err_code open_step(struct engine *g, struct open_step *o, struct err *e)
{
    for (bool whole = true;; whole = false) {
        enum err_code code = expert_step_open(g->opt.experts, g->items, o->lanes_count, &o->step, e);
        bool pages = code == ERR_BUSY && strcmp(e->param, "kv") == 0;
        bool too_much = code == ERR_NO_MEMORY || (code == ERR_BUSY && !pages && !engine_in_flight(g));
        if (code == ERR_OK && !whole)
            g->part_turn += o->lanes_count;
        if (!too_much || o->lanes_count == 1)
            return code;
        if (whole)
            rotate(g, o, g->part_turn);
        o->lanes_count = (o->lanes_count + 1) / 2;
    }
}

static void opened(struct engine *g, struct open_step *o, uint32_t base)
{
    for (uint32_t i = 0; i < o->lanes_count; i++)
        o->lanes[i]->in_step = true;
    g->last_base = base;
    note_switch(g, o);
}

/* Leaves out what was refused a moment ago while the same things are still in flight: planning costs up to a
 * millisecond. */
static void leave_out_refused(struct engine *g, uint64_t now, uint64_t *ret_wake_ns)
{
    bool any = false;
    for (uint32_t i = 0; i < g->bases_count; i++)
        any |= g->bases[i].runnable && g->retry_ns[i] > now;
    if (!any || !engine_in_flight(g))
        return;
    for (uint32_t i = 0; i < g->bases_count; i++)
        if (g->bases[i].runnable && g->retry_ns[i] > now) {
            g->bases[i].runnable = 0;
            *ret_wake_ns = BASE_MIN(*ret_wake_ns, g->retry_ns[i]);
        }
}

/* Nothing runs, nothing is on its way, and no base has room for its weights or its next page between the pages
 * of all: whoever came last gives his back. One alone that finds no room never will. */
static void make_room(struct engine *g, struct err *e)
{
    struct lane *last = NULL;
    if (engine_park_youngest(g))
        return;
    for (uint32_t i = 0; i < g->lanes_top; i++) {
        struct lane *l = &g->lanes[i];
        if (l->request && !l->parked && !l->leader)
            last = l;
    }
    if (last == NULL)
        return;
    e->code = ERR_NO_MEMORY;
    snprintf(e->param, sizeof(e->param), "tiers.hbm");
    err_wrap(e, "the KV cache does not fit beside what is held in tiers.hbm: hold less or raise the budget");
    engine_fail_lane(g, last, e);
}

#define RETRY_NS 5000000

/* What the scheduler names first; if that does not fit now, what it names next, so that a base that waits
 * for memory keeps nobody else from running. */
bool engine_open_next(struct engine *g, uint64_t *ret_wake_ns)
{
    struct sched_view v;
    struct err e = {0}, refused = {0};
    struct open_step *o = free_step(g);
    uint64_t now = clock_ns();
    *ret_wake_ns = UINT64_MAX;
    if (o == NULL)
        return false;
    engine_fork_choices(g);
    make_view(g, &v);
    leave_out_refused(g, now, ret_wake_ns);
    g->short_of_room = false;
    for (uint32_t base; (base = sched_next(&v, now)) != UINT32_MAX;) {
        /* Asked before: what an attempt began and had to let go is in flight for a while too. */
        bool in_flight = engine_in_flight(g);
        o->decided_ns = now;
        o->started = false;
        fill_items(g, base, o);
        enum err_code code = open_step(g, o, &e);
        if (code == ERR_OK) {
            opened(g, o, base);
            return true;
        }
        if (code != ERR_BUSY) {
            fail_lanes(g, o, &e);
            return true;
        }
        refused = e;
        g->short_of_room |= !in_flight;
        g->bases[base].runnable = 0;
        g->retry_ns[base] = now + RETRY_NS;
        *ret_wake_ns = BASE_MIN(*ret_wake_ns, now + RETRY_NS);
    }
    if (g->short_of_room) { /* with nothing open, every base with work was refused */
        make_room(g, &refused);
        return true;
    }
    *ret_wake_ns = BASE_MIN(*ret_wake_ns, sched_wake_ns(&v, now));
    return false;
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

/* One more token of a lane: show what became visible, end the lane where it ends. False = it has ended. */
static bool deliver_token(struct engine *g, struct lane *l, uint64_t now)
{
    struct request *r = l->request;
    int32_t id = sequence_answer(l->seq, l->delivered++);
    bool last = l->delivered == sequence_generated(l->seq), hit_limit = false;
    bool done = last && sequence_done(l->seq, &hit_limit);
    note_token(g, l, now);
    if (done && !hit_limit) { /* an end token: not part of the answer */
        engine_finish_lane(g, l, REQUEST_FINISH_STOP, false);
        return false;
    }
    r->account.completion_tokens++;
    buf_clear(&g->visible);
    bool stop = output_push(&l->output, id, &g->visible);
    engine_publish(l, id, &g->visible, REQUEST_FINISH_NONE, true);
    if (stop || done) {
        engine_finish_lane(g, l, stop ? REQUEST_FINISH_STOP : REQUEST_FINISH_LENGTH, stop);
        return false;
    }
    return true;
}

static void deliver_tokens(struct engine *g, struct lane *l, uint64_t now)
{
    while (sequence_generated(l->seq) > l->delivered)
        if (!deliver_token(g, l, now))
            return;
    if (l->request->notify)
        l->request->notify(l->request);
}

/* Once for each request of the step, however many choices it has in it. */
static void account_step(struct request_account *a, const struct step_stats *st)
{
    a->load_ns += st->load_wait_ns;
    a->load_bytes += st->load_bytes;
    a->node_ns += st->node_ns;
    if (a->first_token_ns)
        return;
    a->prefill_ns += st->run_ns;
    a->origin = BASE_MAX(a->origin, st->origin);
}

static bool first_of_request(struct lane *const *lanes, uint32_t i)
{
    for (uint32_t k = 0; lanes[i]->request->choices_count > 1 && k < i; k++)
        if (lanes[k]->request == lanes[i]->request)
            return false;
    return true;
}

static void note_step(struct engine *g, const struct step_stats *st, uint64_t decided_ns, uint32_t decoded)
{
    lock_take(&g->stats_lock);
    g->stats.steps++;
    g->stats.tokens_decode += decoded + st->accepted;
    g->stats.tokens_prefill += st->tokens - decoded - st->drafted;
    g->stats.tokens_drafted += st->drafted;
    g->stats.tokens_accepted += st->accepted;
    g->stats.node_ns += st->node_ns;
    g->stats.node_load_ns += st->node_load_ns;
    hist_add(&g->stats.step_hist, clock_ns() - decided_ns);
    rdu_node_stats(g->opt.node, &g->stats.rdu);
    g->stats.base_reads = g->stats.rdu.base_reads;
    lock_drop(&g->stats_lock);
}

static void deliver(struct engine *g, struct open_step *o)
{
    struct step_stats st;
    struct lane *lanes[ENGINE_SEQUENCES_MAX];
    uint32_t n = o->lanes_count, decoded = 0;
    uint64_t now = clock_ns();
    expert_step_stats(o->step, &st);
    for (uint32_t i = 0; i < n; i++) {
        lanes[i] = o->lanes[i];
        decoded += lanes[i]->last_token_ns ? 1 : 0; /* 0: still at its prompt */
        if (first_of_request(lanes, i))
            account_step(&lanes[i]->request->account, &st);
    }
    struct sched_base *b = &g->bases[lanes[0]->base_idx];
    b->served_ns = b->waiting_ns = now;
    if (st.load_bytes)
        b->loaded_ns = now;
    uint64_t decided_ns = o->decided_ns;
    engine_close_step(o);
    note_step(g, &st, decided_ns, decoded);
    if (st.load_bytes == 0 && st.drafted == 0)
        sched_note_step(&g->pace, (double)st.run_ns * 1e-9, decoded, st.tokens - decoded);
    for (uint32_t i = 0; i < n; i++) {
        struct lane *l = lanes[i];
        bool limit, done = sequence_done(l->seq, &limit);
        if (engine_lane_cancelled(g, l))
            engine_finish_lane(g, l, REQUEST_FINISH_CANCELLED, false);
        else if (done && sequence_generated(l->seq) == 0)
            engine_finish_lane(g, l, REQUEST_FINISH_LENGTH, false); /* max_tokens 0 */
        else if (sequence_generated(l->seq) > l->delivered)
            deliver_tokens(g, l, now);
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
        uint64_t start_ns = clock_ns();
        enum step_state state = expert_step_advance(o->step, &e);
        note_start(g, o, start_ns);
        switch (state) {
        case STEP_DONE:
            deliver(g, o);
            moved = true;
            break;
        case STEP_FAILED:
            fail_step(g, o, &e);
            moved = true;
            break;
        case STEP_BLOCKED:
            break;
        }
    }
    return moved;
}

