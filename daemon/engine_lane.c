/* Lanes: a request's way from the queue to its last event. */
#include <stdlib.h>
#include <string.h>

#include "daemon/engine_private.h"

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

void engine_publish(struct lane *l, int32_t token, const struct buf *visible, enum request_finish finish,
                    bool with_logprobs)
{
    struct request *r = l->request;
    struct request_choice *c = &r->choice[l->choice_idx];
    /* relaxed: only this thread stores it; the pair for readers is the release below. */
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

void engine_set_state(struct request *r, enum request_state state)
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
    engine_note_demand(g, r, -1);
    if (finish == REQUEST_FINISH_STOP || finish == REQUEST_FINISH_LENGTH)
        engine_note_turn(g, r);
    r->engine = NULL;
    free(er);
    engine_set_state(r, REQUEST_DONE);
    if (r->notify)
        r->notify(r);
    request_unref(&r);
}

void engine_note_reused(struct engine *g, size_t tokens)
{
    if (tokens == 0)
        return;
    lock_take(&g->stats_lock);
    g->stats.prefix_tokens_reused += tokens;
    lock_drop(&g->stats_lock);
}

static void fork_from(struct engine *g, struct lane *l, const struct lane *leader)
{
    engine_note_reused(g, sequence_fork(l->seq, leader->seq));
    l->leader = NULL;
}

/* The leader ends: what it has run so far is theirs, and each goes on by itself. */
static void release_followers(struct engine *g, const struct lane *leader)
{
    for (uint32_t i = 0; leader->request->choices_count > 1 && i < g->lanes_top; i++)
        if (g->lanes[i].request && g->lanes[i].leader == leader)
            fork_from(g, &g->lanes[i], leader);
}

void engine_fork_choices(struct engine *g)
{
    for (uint32_t i = 0; i < g->lanes_top; i++) {
        struct lane *l = &g->lanes[i];
        if (l->request && l->leader && sequence_generated(l->leader->seq) > 0)
            fork_from(g, l, l->leader);
    }
}

static void lane_end(struct engine *g, struct lane *l, enum request_finish finish)
{
    struct request *r = l->request;
    struct engine_request *er = r->engine;
    if (l->load)
        memtier_release(g->opt.memtier, &l->load);
    release_followers(g, l);
    if (l->choice_idx == 0)
        r->account.cached_tokens = (uint32_t)BASE_MIN(sequence_cached(l->seq), r->prompt.count);
    g->parked -= l->parked;
    sequence_close(&l->seq);
    output_done(&l->output);
    *l = (struct lane){0};
    while (g->lanes_top > 0 && g->lanes[g->lanes_top - 1].request == NULL)
        g->lanes_top--;
    atomic_fetch_sub(&g->running, 1);
    if (--er->lanes_left == 0)
        request_end(g, er, finish);
}

void engine_finish_lane(struct engine *g, struct lane *l, enum request_finish finish, bool stop_string)
{
    struct request *r = l->request;
    bool others_run = r->engine->lanes_left > 1;
    buf_clear(&g->visible);
    if (!stop_string && (finish == REQUEST_FINISH_STOP || finish == REQUEST_FINISH_LENGTH))
        output_end(&l->output, &g->visible);
    engine_publish(l, -1, &g->visible, finish, false);
    lane_end(g, l, finish);
    if (others_run && r->notify) /* else the request may be gone */
        r->notify(r);
}

void engine_fail_lane(struct engine *g, struct lane *l, const struct err *e)
{
    /* Only once: others may be reading it after the first choice's end. */
    if (l->request->error.code == ERR_OK)
        l->request->error = *e;
    engine_finish_lane(g, l, REQUEST_FINISH_ERROR, false);
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
        /* release: pairs with the readers' acquire of events_count. */
        atomic_store_explicit(&c->events_count, 1, memory_order_release);
    }
    atomic_fetch_sub(&g->queued, 1);
    request_end(g, er, finish);
}

/* ---- admission --------------------------------------------------------------------------------------------- */

void engine_take_submissions(struct engine *g)
{
    struct request *r;
    while ((r = ring_pop(g->ring)) != NULL) {
        struct engine_request *er = mem_alloc(sizeof(*er));
        er->request = r;
        r->engine = er;
        engine_note_demand(g, r, 1);
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
                                   .sampling = r->sampling, .grammar = r->grammar,
                                   .logprobs = r->want_logprobs ? (r->logprobs ? r->logprobs : 255) : 0,
                                   .scores = r->score_prompt && choice == 0 ? &r->scores : NULL,
                                   .cache = r->cache_prompt};
    opt.sampling.seed += choice; /* choices differ, and each is reproducible */
    enum err_code code = sequence_open(g->opt.experts, &opt, &l->seq, e);
    if (code != ERR_OK)
        return code;
    l->request = r;
    l->choice_idx = choice;
    l->admission_no = ++g->admissions;
    l->base_idx = expert_base_index(r->expert);
    g->lanes_top = BASE_MAX(g->lanes_top, (uint32_t)(l - g->lanes) + 1);
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
        if (code == ERR_OK) {
            mine[i]->leader = i > 0 ? mine[0] : NULL;
            continue;
        }
        er->lanes_left = i + 1; /* so that giving the lanes back does not end the request */
        while (i-- > 0)
            lane_end(g, mine[i], REQUEST_FINISH_NONE);
        er->lanes_left = 0;
        return code;
    }
    er->lanes_left = n;
    return ERR_OK;
}

static bool base_has_others(const struct engine *g, uint32_t base_idx, const struct request *r)
{
    for (uint32_t i = 0; i < g->lanes_top; i++)
        if (g->lanes[i].request && g->lanes[i].request != r && g->lanes[i].base_idx == base_idx)
            return true;
    return false;
}

static void admitted(struct engine *g, struct request *r)
{
    uint32_t base_idx = expert_base_index(r->expert);
    uint64_t now = clock_ns();
    r->account.admitted_ns = now;
    r->account.queue_ns = now - r->account.submitted_ns;
    if (!base_has_others(g, base_idx, r))
        g->bases[base_idx].waiting_ns = now;
    lock_take(&g->stats_lock);
    hist_add(&g->stats.queue_hist, r->account.queue_ns);
    lock_drop(&g->stats_lock);
    atomic_fetch_sub(&g->queued, 1);
}

/* Weights that running an expert needs beside what is held anyway. */
static uint64_t weights_beside_hold(const struct engine *g, const struct expert *ex)
{
    uint64_t bytes = expert_footprint(ex);
    if (g->holding && expert_base_index(ex) == expert_base_index(g->opt.generalist))
        bytes -= BASE_MIN(bytes, expert_footprint(g->opt.generalist));
    return bytes;
}

/* Neither held nor pages in use. Not memtier_room: pins end with their step, pages stay until their sequence
 * ends. */
static uint64_t lasting_room(const struct engine *g)
{
    struct memtier_stats st;
    memtier_stats(g->opt.memtier, &st);
    uint64_t taken = st.hbm_held + st.page_bytes;
    return st.hbm_budget > taken ? st.hbm_budget - taken : 0;
}

/* Tokens of an answer whose pages a newcomer must find free; what it needs beyond that it takes as it goes. */
#define ADMIT_TOKENS 64

/* Weights come and go between pages that stay: they must leave room for the largest expert that runs, or
 * nothing could run at all. And each running sequence should find its next page. */
static bool leaves_room(const struct engine *g, const struct expert *ex, uint64_t kv)
{
    uint64_t need = weights_beside_hold(g, ex);
    for (uint32_t i = 0; i < g->lanes_top; i++) {
        const struct lane *l = &g->lanes[i];
        if (l->request == NULL || l->parked)
            continue;
        need = BASE_MAX(need, weights_beside_hold(g, l->request->expert));
        kv += experts_kv_bytes(g->opt.experts, l->request->expert, 1);
    }
    /* A sixteenth on top: room is in pieces, and adapters of one batch come on top of each other. */
    return kv + need + need / 16 <= lasting_room(g);
}

static bool has_room(const struct engine *g, const struct request *r)
{
    size_t answer = BASE_MIN(r->max_tokens, ADMIT_TOKENS);
    uint64_t kv = experts_kv_bytes(g->opt.experts, r->expert, r->prompt.count + answer);
    kv += (r->choices_count - 1) * experts_kv_bytes(g->opt.experts, r->expert, answer + 1);
    return leaves_room(g, r->expert, kv);
}

/* An order that waits for room makes none, however long it waits. */
static bool order_loads(const struct engine *g)
{
    for (const struct engine_order *o = g->open_orders; o; o = o->next)
        if (o->lease)
            return true;
    return false;
}

bool engine_in_flight(struct engine *g)
{
    struct memtier_stats st;
    for (uint32_t i = 0; i < STEPS_MAX; i++)
        if (g->open[i].step)
            return true;
    for (uint32_t i = 0; i < g->lanes_top; i++)
        if (g->lanes[i].load)
            return true;
    memtier_stats(g->opt.memtier, &st);
    /* Cancelled loads and copies to ddr end by themselves; a page on its way to the spill file
     * cannot be evicted until it is there. */
    return g->warm != NULL || order_loads(g) || st.jobs_out + st.writes_out > 0;
}

/* In order: a large request at the head is not overtaken for ever by small ones behind it; and nobody comes in
 * while somebody who gave his pages up waits to go on. */
void engine_admit(struct engine *g)
{
    while (g->waiting && g->parked == 0 && g->waiting->request->choices_count <= free_lanes(g)) {
        struct engine_request *er = g->waiting;
        struct err e = {0};
        if (atomic_load(&g->running) > 0 && (g->short_of_room || !has_room(g, er->request)))
            return; /* room comes back when something ends */
        enum err_code code = open_lanes(g, er, &e);
        g->waiting = er->next;
        if (code == ERR_OK)
            admitted(g, er->request);
        else
            waiting_end(g, er, REQUEST_FINISH_ERROR, &e);
    }
}

/* ---- giving way -------------------------------------------------------------------------------------------------- */

bool engine_park_youngest(struct engine *g)
{
    struct lane *youngest = NULL;
    uint32_t going = 0;
    for (uint32_t i = 0; i < g->lanes_top; i++) {
        struct lane *l = &g->lanes[i];
        if (l->request == NULL || l->parked || l->leader)
            continue;
        going++;
        if (!l->in_step && (youngest == NULL || l->admission_no > youngest->admission_no))
            youngest = l;
    }
    if (youngest == NULL || going < 2)
        return false;
    sequence_yield(youngest->seq);
    youngest->parked = true;
    g->parked++;
    lock_take(&g->stats_lock);
    g->stats.preemptions++;
    lock_drop(&g->stats_lock);
    return true;
}

void engine_unpark(struct engine *g)
{
    struct lane *oldest = NULL;
    uint32_t going = 0;
    if (g->parked == 0)
        return;
    for (uint32_t i = 0; i < g->lanes_top; i++) {
        struct lane *l = &g->lanes[i];
        going += l->request && !l->parked && !l->leader;
        if (l->request && l->parked && (oldest == NULL || l->admission_no < oldest->admission_no))
            oldest = l;
    }
    if (oldest == NULL)
        return; /* not reachable: `parked` counts them */
    const struct expert *ex = sequence_expert(oldest->seq);
    uint64_t kv = experts_kv_bytes(g->opt.experts, ex, sequence_tokens(oldest->seq) + ADMIT_TOKENS);
    if (going > 0 && !leaves_room(g, ex, kv))
        return;
    oldest->parked = oldest->fetched = false;
    g->parked--;
}

/* ---- cancelling ------------------------------------------------------------------------------------------------ */

bool engine_lane_cancelled(const struct engine *g, const struct lane *l)
{
    return atomic_load(&l->request->cancelled) || atomic_load(&g->stop);
}

/* A step that waits for loads and has lost one of its requests is given up: the others join the next one,
 * and what nobody waits for is not loaded. */
void engine_drop_cancelled(struct engine *g)
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
            lost |= engine_lane_cancelled(g, o->lanes[k]);
        if (lost)
            engine_close_step(o);
    }
    for (uint32_t i = 0; i < g->lanes_top; i++) {
        struct lane *l = &g->lanes[i];
        if (l->request && !l->in_step && engine_lane_cancelled(g, l))
            engine_finish_lane(g, l, REQUEST_FINISH_CANCELLED, false);
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
    if (code == ERR_OK)
        engine_set_state(l->request, REQUEST_LOADING);
    else if (code != ERR_BUSY)
        engine_fail_lane(g, l, &e);
}

static void check_adapter_load(struct engine *g, struct lane *l)
{
    struct err e;
    struct request_account *a = &l->request->account;
    if (!memtier_lease_ok(l->load, &e)) {
        if (!l->fetching) {
            engine_fail_lane(g, l, &e);
            return;
        }
        memtier_release(g->opt.memtier, &l->load);
        sequence_fetch_failed(l->seq);
        l->fetching = false;
        return;
    }
    if (memtier_lease_ready(l->load) < memtier_lease_count(l->load))
        return;
    a->load_ns += clock_ns() - l->load_start_ns;
    a->load_bytes += memtier_lease_load_bytes(l->load);
    if (a->first_token_ns == 0)
        a->origin = BASE_MAX(a->origin, memtier_lease_origin(l->load));
    if (l->fetching && !l->parked) /* before they lose the lease's pins; a parked lane takes none */
        engine_note_reused(g, sequence_adopt(l->seq));
    l->fetching = false;
    memtier_release(g->opt.memtier, &l->load);
}

/* Once per prompt: pages of its beginning that had to leave hbm come back beside the running steps. */
static void start_fetch(struct engine *g, struct lane *l)
{
    if (l->fetched || l->parked || l->leader)
        return;
    l->fetched = true;
    l->load_start_ns = clock_ns();
    sequence_fetch(l->seq, l->load_start_ns, &l->load);
    l->fetching = l->load != NULL;
    if (l->fetching)
        engine_set_state(l->request, REQUEST_LOADING);
}

void engine_move_adapters(struct engine *g)
{
    for (uint32_t i = 0; i < g->lanes_top; i++) {
        struct lane *l = &g->lanes[i];
        if (l->request == NULL || l->in_step)
            continue;
        if (l->load == NULL && !l->parked)
            start_adapter_load(g, l);
        if (l->request && l->load == NULL)
            start_fetch(g, l);
        if (l->request && l->load)
            check_adapter_load(g, l);
    }
}

