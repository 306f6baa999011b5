/* The engine loop: takes submissions, admits what fits, opens the step the scheduler names, advances every
 * open step that can move, hands tokens out. It never waits while anything can run. Everything below is
 * touched by the engine thread alone, except what is marked; the HTTP side sees a request only through the
 * published events (request.h). */
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/engine.h"
#include "daemon/output.h"
#include "daemon/sched.h"

#define STEPS_MAX 4
#define TEXT_BLOCK 2048

/* One running sequence of a request (one per choice). */
struct lane {
    struct request *request; /* NULL = free */
    uint32_t choice_idx, base_idx;
    struct sequence *seq;
    struct output output;
    struct memtier_lease *load;  /* its adapter is being brought in: not yet part of any step */
    uint64_t load_start_ns, last_token_ns;
    bool in_step;
    char *text;                  /* rest of the current text block */
    size_t text_room;
};

struct engine_request {
    struct request *request;
    uint32_t lanes_left;
    struct engine_request *next; /* waiting list, priority then arrival */
};

struct open_step {
    struct expert_step *step;    /* NULL = free */
    struct lane **lanes;         /* [max_sequences] */
    uint32_t lanes_count;
    uint64_t decided_ns;
    bool started;
};

struct engine {
    struct engine_options opt;
    pthread_t thread;
    struct ring *ring;           /* submissions */
    atomic_bool draining, stop, ready; /* any thread */
    atomic_uint queued, running; /* engine writes, any thread reads */

    struct lane *lanes;          /* [max_sequences] */
    struct engine_request *waiting;
    struct sched_base *bases;    /* [bases] rebuilt for each decision, served/waiting kept */
    uint32_t bases_count, last_base;
    struct open_step open[STEPS_MAX];
    struct step_item *items;     /* [max_sequences] */
    uint64_t *expert_step_no;    /* [experts] number of the last step it was in */
    uint64_t step_no;
    struct buf visible;
    struct memtier_lease *warm;  /* the generalist on its way in */

    struct lock stats_lock;      /* guards stats and expert_tokens */
    struct engine_stats stats;
    uint64_t *expert_tokens;
    _Atomic uint64_t request_ns; /* moving average of a request's time on a lane, for Retry-After */
};

/* ---- publishing -------------------------------------------------------------------------------------- */

static char *text_space(struct lane *l, size_t len)
{
    if (l->text_room < len) {
        l->text_room = BASE_MAX(len, TEXT_BLOCK);
        l->text = arena_alloc(&l->request->memory, l->text_room);
    }
    char *at = l->text;
    l->text += len;
    l->text_room -= len;
    return at;
}

static void publish(struct lane *l, int32_t token, const struct buf *visible, enum request_finish finish,
                    bool with_logprobs)
{
    struct request *r = l->request;
    struct request_choice *c = &r->choice[l->choice_idx];
    uint32_t at = atomic_load_explicit(&c->events_count, memory_order_relaxed);
    if (at >= c->events_cap)
        return; /* cannot happen: the cap is max_tokens plus the final ones */
    struct request_event *ev = &c->events[at];
    *ev = (struct request_event){.token = token, .finish = finish};
    if (visible && visible->len) {
        char *text = text_space(l, visible->len);
        memcpy(text, visible->data, visible->len);
        ev->text = text;
        ev->text_len = (uint32_t)visible->len;
    }
    if (with_logprobs && r->want_logprobs) {
        struct token_logprob top[REQUEST_TOP_LOGPROBS_MAX];
        ev->top_count = (uint32_t)sequence_logprobs(l->seq, &ev->logprob, top, BASE_COUNT(top));
        if (ev->top_count) {
            struct token_logprob *copy = arena_alloc(&r->memory, ev->top_count * sizeof(*copy));
            memcpy(copy, top, ev->top_count * sizeof(*copy));
            ev->top = copy;
        }
    }
    /* release: pairs with the readers' acquire of events_count; the event is whole before it counts. */
    atomic_store_explicit(&c->events_count, at + 1, memory_order_release);
}

static void set_state(struct request *r, enum request_state state)
{
    /* release: the account and error are whole before DONE is seen. */
    atomic_store_explicit(&r->state, state, memory_order_release);
}

/* ---- the end of lanes and requests ---------------------------------------------------------------------- */

static void note_request_done(struct engine *g, struct request *r, enum request_finish finish)
{
    uint64_t took = r->account.admitted_ns ? r->account.done_ns - r->account.admitted_ns : 0;
    uint64_t average = atomic_load(&g->request_ns);
    atomic_store(&g->request_ns, average ? average - average / 8 + took / 8 : took);
    lock_take(&g->stats_lock);
    if (finish == REQUEST_FINISH_CANCELLED)
        g->stats.requests_cancelled++;
    else if (finish == REQUEST_FINISH_ERROR)
        g->stats.requests_failed++;
    else
        g->stats.requests_done++;
    lock_drop(&g->stats_lock);
}

static void request_end(struct engine *g, struct engine_request *er, enum request_finish finish)
{
    struct request *r = er->request;
    r->account.done_ns = clock_ns();
    if (r->account.first_token_ns)
        r->account.decode_ns = r->account.done_ns - r->account.first_token_ns;
    note_request_done(g, r, finish);
    r->engine = NULL;
    free(er);
    set_state(r, REQUEST_DONE);
    if (r->notify)
        r->notify(r);
    request_unref(&r);
}

static void lane_end(struct engine *g, struct lane *l, enum request_finish finish)
{
    struct request *r = l->request;
    struct engine_request *er = r->engine;
    if (l->load)
        memtier_release(g->opt.memtier, &l->load);
    sequence_close(&l->seq);
    output_done(&l->output);
    *l = (struct lane){0};
    atomic_fetch_sub(&g->running, 1);
    if (--er->lanes_left == 0)
        request_end(g, er, finish);
}

/* The last event of a lane: what was held back, and why it ended. */
static void lane_finish(struct engine *g, struct lane *l, enum request_finish finish, bool stop_string)
{
    buf_clear(&g->visible);
    if (!stop_string && (finish == REQUEST_FINISH_STOP || finish == REQUEST_FINISH_LENGTH))
        output_end(&l->output, &g->visible);
    publish(l, -1, &g->visible, finish, false);
    lane_end(g, l, finish);
}

static void lane_fail(struct engine *g, struct lane *l, const struct err *e)
{
    l->request->error = *e;
    lane_finish(g, l, REQUEST_FINISH_ERROR, false);
}

/* A request that never got a lane. */
static void waiting_end(struct engine *g, struct engine_request *er, enum request_finish finish,
                        const struct err *e)
{
    struct request *r = er->request;
    if (e)
        r->error = *e;
    for (uint32_t i = 0; i < r->choices_count; i++) {
        struct request_choice *c = &r->choice[i];
        c->events[0] = (struct request_event){.token = -1, .finish = finish};
        atomic_store_explicit(&c->events_count, 1, memory_order_release);
    }
    atomic_fetch_sub(&g->queued, 1);
    request_end(g, er, finish);
}

/* ---- admission --------------------------------------------------------------------------------------------- */

static void take_submissions(struct engine *g)
{
    struct request *r;
    ring_drain_fd(g->ring);
    while ((r = ring_pop(g->ring)) != NULL) {
        struct engine_request *er = mem_alloc(sizeof(*er));
        er->request = r;
        r->engine = er;
        struct engine_request **at = &g->waiting;
        while (*at && (*at)->request->priority >= r->priority)
            at = &(*at)->next;
        er->next = *at;
        *at = er;
    }
}

static struct lane *free_lane(struct engine *g)
{
    for (uint32_t i = 0; i < g->opt.max_sequences; i++)
        if (g->lanes[i].request == NULL)
            return &g->lanes[i];
    return NULL;
}

static uint32_t free_lanes(const struct engine *g)
{
    return g->opt.max_sequences - atomic_load(&g->running);
}

static enum err_code open_lane(struct engine *g, struct engine_request *er, uint32_t choice,
                               struct lane **ret, struct err *e)
{
    struct request *r = er->request;
    struct lane *l = free_lane(g);
    struct sequence_options opt = {.expert = r->expert, .tokens = r->prompt.ids,
                                   .tokens_count = r->prompt.count, .max_tokens = r->max_tokens,
                                   .sampling = r->sampling,
                                   .logprobs = r->want_logprobs ? (r->logprobs ? r->logprobs : 255) : 0};
    opt.sampling.seed += choice; /* choices differ, and each is reproducible */
    enum err_code code = sequence_open(g->opt.experts, &opt, &l->seq, e);
    if (code != ERR_OK)
        return code;
    l->request = r;
    l->choice_idx = choice;
    l->base_idx = expert_base_index(r->expert);
    output_init(&l->output, expert_tokenizer(r->expert), r->stops, r->stops_count);
    atomic_fetch_add(&g->running, 1);
    *ret = l;
    return ERR_OK;
}

/* All choices or none. */
static enum err_code open_lanes(struct engine *g, struct engine_request *er, struct err *e)
{
    struct lane *mine[REQUEST_CHOICES_MAX];
    uint32_t n = er->request->choices_count;
    for (uint32_t i = 0; i < n; i++) {
        enum err_code code = open_lane(g, er, i, &mine[i], e);
        if (code == ERR_OK)
            continue;
        er->lanes_left = i + 1; /* so that giving the lanes back does not end the request */
        while (i-- > 0)
            lane_end(g, mine[i], REQUEST_FINISH_NONE);
        er->lanes_left = 0;
        return code;
    }
    er->lanes_left = n;
    return ERR_OK;
}

static void admitted(struct engine *g, struct request *r)
{
    struct sched_base *b = &g->bases[expert_base_index(r->expert)];
    uint64_t now = clock_ns();
    r->account.admitted_ns = now;
    r->account.queue_ns = now - r->account.submitted_ns;
    if (b->runnable == 0 && !b->open)
        b->waiting_ns = now;
    lock_take(&g->stats_lock);
    hist_add(&g->stats.queue_hist, r->account.queue_ns);
    lock_drop(&g->stats_lock);
    atomic_fetch_sub(&g->queued, 1);
}

/* In order: a large request at the head is not overtaken for ever by small ones behind it. */
static void admit(struct engine *g)
{
    while (g->waiting && g->waiting->request->choices_count <= free_lanes(g)) {
        struct engine_request *er = g->waiting;
        struct err e = {0};
        enum err_code code = open_lanes(g, er, &e);
        if (code == ERR_BUSY && atomic_load(&g->running) > 0)
            return; /* room comes back when something ends */
        g->waiting = er->next;
        if (code == ERR_OK)
            admitted(g, er->request);
        else
            waiting_end(g, er, REQUEST_FINISH_ERROR, &e);
    }
}

/* ---- cancelling ------------------------------------------------------------------------------------------------ */

static bool lane_cancelled(const struct engine *g, const struct lane *l)
{
    return atomic_load(&l->request->cancelled) || atomic_load(&g->stop);
}

static void close_open_step(struct open_step *o)
{
    for (uint32_t i = 0; i < o->lanes_count; i++)
        o->lanes[i]->in_step = false;
    expert_step_close(&o->step);
    o->lanes_count = 0;
}

/* A step that waits for loads and has lost one of its requests is given up: the others join the next one,
 * and what nobody waits for is not loaded. */
static void drop_cancelled(struct engine *g)
{
    for (struct engine_request **at = &g->waiting; *at;) {
        struct engine_request *er = *at;
        if (!atomic_load(&er->request->cancelled) && !atomic_load(&g->stop)) {
            at = &er->next;
            continue;
        }
        *at = er->next;
        waiting_end(g, er, REQUEST_FINISH_CANCELLED, NULL);
    }
    for (uint32_t i = 0; i < STEPS_MAX; i++) {
        struct open_step *o = &g->open[i];
        bool lost = false;
        for (uint32_t k = 0; o->step && k < o->lanes_count; k++)
            lost |= lane_cancelled(g, o->lanes[k]);
        if (lost)
            close_open_step(o);
    }
    for (uint32_t i = 0; i < g->opt.max_sequences; i++) {
        struct lane *l = &g->lanes[i];
        if (l->request && !l->in_step && lane_cancelled(g, l))
            lane_finish(g, l, REQUEST_FINISH_CANCELLED, false);
    }
}

/* ---- bringing adapters in ------------------------------------------------------------------------------------------ */

/* An adapter that is not resident is loaded beside the running steps: its sequences join a batch when it is
 * there, and nobody waits for it. */
static void start_adapter_load(struct engine *g, struct lane *l)
{
    size_t count, adapters = expert_adapter_segments(l->request->expert);
    const uint32_t *segs = expert_segments(l->request->expert, &count);
    bool missing = false;
    for (size_t i = 0; i < adapters; i++)
        missing |= memtier_where(g->opt.memtier, segs[i]) != MEMTIER_HBM;
    if (!missing)
        return;
    struct err e;
    l->load_start_ns = clock_ns();
    enum err_code code = memtier_reserve(g->opt.memtier, segs, adapters, l->load_start_ns, &l->load, &e);
    if (code != ERR_OK && code != ERR_BUSY)
        lane_fail(g, l, &e);
}

static void check_adapter_load(struct engine *g, struct lane *l)
{
    struct err e;
    struct request_account *a = &l->request->account;
    if (!memtier_lease_ok(l->load, &e)) {
        lane_fail(g, l, &e);
        return;
    }
    if (memtier_lease_ready(l->load) < expert_adapter_segments(l->request->expert))
        return;
    a->load_ns += clock_ns() - l->load_start_ns;
    a->load_bytes += memtier_lease_load_bytes(l->load);
    a->origin = BASE_MAX(a->origin, memtier_lease_origin(l->load));
    memtier_release(g->opt.memtier, &l->load);
}

static void move_adapters(struct engine *g)
{
    for (uint32_t i = 0; i < g->opt.max_sequences; i++) {
        struct lane *l = &g->lanes[i];
        if (l->request == NULL || l->in_step)
            continue;
        if (l->load == NULL)
            start_adapter_load(g, l);
        if (l->request && l->load)
            check_adapter_load(g, l);
    }
}

/* ---- choosing ---------------------------------------------------------------------------------------------------------- */

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
        set_state(r, st.origin == MEMTIER_HBM ? REQUEST_RUNNING : REQUEST_LOADING);
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
        close_open_step(o);
    for (uint32_t i = 0; i < n; i++)
        lane_fail(g, lanes[i], e);
}

static struct open_step *free_step(struct engine *g)
{
    for (uint32_t i = 0; i < STEPS_MAX; i++)
        if (g->open[i].step == NULL)
            return &g->open[i];
    return NULL;
}

static bool any_open(const struct engine *g)
{
    for (uint32_t i = 0; i < STEPS_MAX; i++)
        if (g->open[i].step)
            return true;
    return false;
}

/* Opens the step that the scheduler names. False = nothing to open now; *ret_wake_ns says until when. */
static bool open_next(struct engine *g, uint64_t *ret_wake_ns)
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
    enum err_code code = expert_step_open(g->opt.experts, g->items, o->lanes_count, &o->step, &e);
    if (code == ERR_BUSY && any_open(g)) {
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
        lane_finish(g, l, REQUEST_FINISH_STOP, false);
        return;
    }
    r->account.completion_tokens++;
    buf_clear(&g->visible);
    bool stop = output_push(&l->output, id, &g->visible);
    publish(l, id, &g->visible, REQUEST_FINISH_NONE, true);
    if (stop)
        lane_finish(g, l, REQUEST_FINISH_STOP, true);
    else if (done)
        lane_finish(g, l, REQUEST_FINISH_LENGTH, false);
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
    close_open_step(o);
    note_step(g, &st, decided_ns, decoded);
    for (uint32_t i = 0; i < n; i++) {
        struct lane *l = lanes[i];
        bool limit, done = sequence_done(l->seq, &limit);
        if (lane_cancelled(g, l))
            lane_finish(g, l, REQUEST_FINISH_CANCELLED, false);
        else if (done && sequence_generated(l->seq) == 0)
            lane_finish(g, l, REQUEST_FINISH_LENGTH, false); /* max_tokens 0 */
        else if (sequence_generated(l->seq) > 0 && sequence_pending(l->seq) == 1)
            deliver_token(g, l, now);
    }
}

/* Every open step moves as far as its weights have arrived. True = something ran. */
static bool advance_open(struct engine *g)
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

/* ---- the loop ------------------------------------------------------------------------------------------------------------------ */

static void wait_for_work(struct engine *g, uint64_t wake_ns)
{
    struct pollfd fds[2] = {{.fd = ring_fd(g->ring), .events = POLLIN},
                            {.fd = memtier_fd(g->opt.memtier), .events = POLLIN}};
    uint64_t now = clock_ns();
    int timeout = 1000;
    if (wake_ns <= now)
        timeout = 0;
    else if (wake_ns != UINT64_MAX)
        timeout = (int)BASE_MIN((wake_ns - now) / 1000000 + 1, 1000);
    poll(fds, 2, timeout);
    memtier_poll(g->opt.memtier);
}

/* The generalist is brought in before anything asks for it, then held. */
static void start_warming(struct engine *g)
{
    size_t count;
    struct err e;
    if (g->opt.generalist == NULL || !expert_ok(g->opt.generalist, NULL)) {
        atomic_store(&g->ready, true);
        return;
    }
    const uint32_t *segs = expert_segments(g->opt.generalist, &count);
    for (size_t i = 0; i < count; i++)
        memtier_hold(g->opt.memtier, segs[i]);
    if (memtier_reserve(g->opt.memtier, segs, count, clock_ns(), &g->warm, &e) != ERR_OK)
        atomic_store(&g->ready, true); /* it will load, or say why not, on first use */
}

static void check_warming(struct engine *g)
{
    size_t count;
    if (g->warm == NULL)
        return;
    expert_segments(g->opt.generalist, &count);
    if (memtier_lease_ok(g->warm, NULL) && memtier_lease_ready(g->warm) < count)
        return;
    memtier_release(g->opt.memtier, &g->warm);
    atomic_store(&g->ready, true);
}

static void *engine_main(void *arg)
{
    struct engine *g = arg;
    start_warming(g);
    for (;;) {
        uint64_t wake_ns;
        memtier_poll(g->opt.memtier);
        check_warming(g);
        take_submissions(g);
        drop_cancelled(g);
        if (atomic_load(&g->stop) && atomic_load(&g->running) == 0)
            break;
        admit(g);
        move_adapters(g);
        bool moved = advance_open(g);
        bool opened = open_next(g, &wake_ns);
        if (!moved && !opened)
            wait_for_work(g, wake_ns);
    }
    if (g->warm)
        memtier_release(g->opt.memtier, &g->warm);
    return NULL;
}

/* ---- the outside ------------------------------------------------------------------------------------------------------------------ */

static void engine_free(struct engine *g)
{
    for (uint32_t i = 0; i < STEPS_MAX; i++)
        free(g->open[i].lanes);
    ring_close(&g->ring);
    buf_done(&g->visible);
    lock_done(&g->stats_lock);
    free(g->lanes);
    free(g->items);
    free(g->bases);
    free(g->expert_step_no);
    free(g->expert_tokens);
    free(g);
}

enum err_code engine_open(const struct engine_options *opt, struct engine **ret, struct err *e)
{
    struct engine *g = mem_alloc(sizeof(*g));
    g->opt = *opt;
    g->opt.max_sequences = BASE_MIN(BASE_MAX(opt->max_sequences, 1), 256);
    size_t experts = experts_count(opt->experts);
    for (size_t i = 0; i < experts; i++) {
        struct expert *ex = experts_at(opt->experts, i);
        if (expert_ok(ex, NULL))
            g->bases_count = BASE_MAX(g->bases_count, expert_base_index(ex) + 1);
    }
    g->lanes = mem_array(g->opt.max_sequences, sizeof(*g->lanes));
    g->items = mem_array(g->opt.max_sequences, sizeof(*g->items));
    g->bases = mem_array(BASE_MAX(g->bases_count, 1), sizeof(*g->bases));
    g->expert_step_no = mem_array(BASE_MAX(experts, 1), sizeof(*g->expert_step_no));
    g->expert_tokens = mem_array(BASE_MAX(experts, 1), sizeof(*g->expert_tokens));
    g->last_base = UINT32_MAX;
    for (uint32_t i = 0; i < STEPS_MAX; i++)
        g->open[i].lanes = mem_array(g->opt.max_sequences, sizeof(struct lane *));
    lock_init(&g->stats_lock, LOCK_RANK_METRICS, "engine stats");
    enum err_code code = ring_open(&g->ring, BASE_MAX(opt->max_queue, 1), e);
    if (code == ERR_OK)
        code = thread_start(&g->thread, "engine", engine_main, g, e);
    if (code != ERR_OK) {
        engine_free(g);
        return code;
    }
    *ret = g;
    return ERR_OK;
}

/* Seconds until a lane is likely free for one more: the queue ahead times the time a request takes. */
static uint32_t retry_after(const struct engine *g)
{
    uint64_t ahead = atomic_load(&g->queued) + 1;
    uint64_t ns = atomic_load(&g->request_ns) * ahead / g->opt.max_sequences;
    return (uint32_t)BASE_MIN(BASE_MAX(ns / 1000000000, 1), 600);
}

enum err_code engine_submit(struct engine *g, struct request *r, uint32_t *ret_retry_after_s, struct err *e)
{
    *ret_retry_after_s = 1;
    if (atomic_load(&g->draining))
        return err_set(e, ERR_SHUTDOWN, "the server is shutting down and takes no new requests");
    if (!expert_ok(r->expert, e))
        return err_wrap(e, "%s cannot serve", expert_info(r->expert)->name);
    enum err_code code = experts_check_fit(g->opt.experts, r->expert, r->prompt.count, r->max_tokens, e);
    if (code != ERR_OK)
        return code;
    if (r->choices_count > g->opt.max_sequences)
        return err_set_param(e, ERR_INVALID, "n", "n is %u: this server runs %u sequences at once",
                             r->choices_count, g->opt.max_sequences);
    r->account.submitted_ns = clock_ns();
    set_state(r, REQUEST_QUEUED);
    request_ref(r);
    bool full = atomic_fetch_add(&g->queued, 1) >= g->opt.max_queue;
    if (!full && ring_push(g->ring, r))
        return ERR_OK;
    *ret_retry_after_s = retry_after(g);
    atomic_fetch_sub(&g->queued, 1);
    struct request *mine = r;
    request_unref(&mine);
    return err_set(e, ERR_QUEUE_FULL, "the queue of %u requests is full; try again in about %u s",
                   g->opt.max_queue, *ret_retry_after_s);
}

void engine_cancel(struct engine *g, struct request *r)
{
    atomic_store(&r->cancelled, true);
    ring_wake(g->ring);
}

void engine_drain(struct engine *g)
{
    atomic_store(&g->draining, true);
}

bool engine_ready(struct engine *g)
{
    return atomic_load(&g->ready);
}

bool engine_idle(struct engine *g)
{
    return atomic_load(&g->queued) == 0 && atomic_load(&g->running) == 0;
}

void engine_close(struct engine **gp)
{
    struct engine *g = *gp;
    if (g == NULL)
        return;
    atomic_store(&g->draining, true);
    atomic_store(&g->stop, true);
    ring_wake(g->ring);
    thread_join(g->thread);
    /* A submit that raced with the stop: nobody will run it. */
    take_submissions(g);
    drop_cancelled(g);
    engine_free(g);
    *gp = NULL;
}

void engine_stats(struct engine *g, struct engine_stats *ret)
{
    lock_take(&g->stats_lock);
    *ret = g->stats;
    lock_drop(&g->stats_lock);
    ret->running = atomic_load(&g->running);
    ret->queued = atomic_load(&g->queued);
    memtier_stats(g->opt.memtier, &ret->memtier);
}

void engine_expert_tokens(struct engine *g, uint64_t *ret, size_t count)
{
    lock_take(&g->stats_lock);
    memcpy(ret, g->expert_tokens, BASE_MIN(count, experts_count(g->opt.experts)) * sizeof(*ret));
    lock_drop(&g->stats_lock);
}
