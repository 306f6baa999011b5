/* The engine loop: takes submissions, admits what fits, opens the step the scheduler names, advances every
 * open step that can move, hands tokens out. It never waits while anything can run. The HTTP side sees a
 * request only through the published events (request.h). */
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/engine_private.h"

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
    /* Only here: while something runs, a descriptor that stays readable costs no call. */
    if (poll(fds, 2, timeout) > 0 && (fds[0].revents & POLLIN))
        ring_drain_fd(g->ring);
    memtier_poll(g->opt.memtier);
}

/* Holding the generalist must leave room for any other expert and one full context. */
static bool may_hold(struct engine *g, const struct expert *generalist)
{
    struct memtier_stats st;
    uint64_t most = 0;
    memtier_stats(g->opt.memtier, &st);
    for (size_t i = 0; i < experts_count(g->opt.experts); i++) {
        struct expert *ex = experts_at(g->opt.experts, i);
        if (!expert_ok(ex, NULL))
            continue;
        uint64_t need = experts_kv_bytes(g->opt.experts, ex, expert_context(ex));
        if (expert_base_index(ex) != expert_base_index(generalist))
            need += expert_footprint(ex);
        most = BASE_MAX(most, need);
    }
    return expert_footprint(generalist) + most + most / 16 <= st.hbm_budget;
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
    g->holding = may_hold(g, g->opt.generalist);
    for (size_t i = 0; g->holding && i < count; i++)
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
        engine_take_submissions(g);
        engine_drop_cancelled(g);
        if (atomic_load(&g->stop) && atomic_load(&g->running) == 0)
            break;
        engine_run_orders(g);
        engine_unpark(g);
        engine_admit(g);
        engine_look(g);
        engine_move_adapters(g);
        bool moved = engine_advance(g);
        engine_note_loads(g);
        bool opened = engine_open_next(g, &wake_ns);
        if (!moved && !opened)
            wait_for_work(g, wake_ns);
    }
    if (g->warm)
        memtier_release(g->opt.memtier, &g->warm);
    engine_end_orders(g);
    return NULL;
}

/* ---- the outside ------------------------------------------------------------------------------------------------------------------ */

static void engine_free(struct engine *g)
{
    for (uint32_t i = 0; i < STEPS_MAX; i++)
        free(g->open[i].lanes);
    ring_close(&g->ring);
    engine_close_orders(g);
    buf_done(&g->visible);
    lock_done(&g->stats_lock);
    free(g->lanes);
    free(g->items);
    free(g->bases);
    free(g->retry_ns);
    free(g->expert_step_no);
    free(g->expert_tokens);
    free(g);
}

enum err_code engine_open(const struct engine_options *opt, struct engine **ret, struct err *e)
{
    struct engine *g = mem_alloc(sizeof(*g));
    g->opt = *opt;
    g->opt.max_sequences = BASE_MIN(BASE_MAX(opt->max_sequences, 1), ENGINE_SEQUENCES_MAX);
    size_t experts = experts_count(opt->experts);
    for (size_t i = 0; i < experts; i++) {
        struct expert *ex = experts_at(opt->experts, i);
        if (expert_ok(ex, NULL))
            g->bases_count = BASE_MAX(g->bases_count, expert_base_index(ex) + 1);
    }
    g->lanes = mem_array(g->opt.max_sequences, sizeof(*g->lanes));
    g->items = mem_array(g->opt.max_sequences, sizeof(*g->items));
    g->bases = mem_array(BASE_MAX(g->bases_count, 1), sizeof(*g->bases));
    g->retry_ns = mem_array(BASE_MAX(g->bases_count, 1), sizeof(*g->retry_ns));
    g->expert_step_no = mem_array(BASE_MAX(experts, 1), sizeof(*g->expert_step_no));
    g->expert_tokens = mem_array(BASE_MAX(experts, 1), sizeof(*g->expert_tokens));
    g->last_base = UINT32_MAX;
    for (uint32_t i = 0; i < STEPS_MAX; i++)
        g->open[i].lanes = mem_array(g->opt.max_sequences, sizeof(struct lane *));
    lock_init(&g->stats_lock, LOCK_RANK_METRICS, "engine stats");
    enum err_code code = ring_open(&g->ring, BASE_MAX(opt->max_queue, 1), e);
    if (code == ERR_OK)
        code = engine_open_orders(g, e);
    if (code == ERR_OK)
        code = thread_start(&g->thread, "engine", engine_main, g, e);
    if (code != ERR_OK) {
        engine_free(g);
        return code;
    }
    *ret = g;
    return ERR_OK;
}

/* Seconds until a lane is likely free for one more: what is being loaded now, and the queue ahead times the
 * time a request takes on a lane, its own loads included. */
static uint32_t retry_after(const struct engine *g)
{
    uint64_t ahead = atomic_load(&g->queued) + 1;
    uint64_t ns = atomic_load(&g->request_ns) * ahead / g->opt.max_sequences;
    double rate = memtier_load_rate(g->opt.memtier);
    if (rate > 0)
        ns += (uint64_t)((double)atomic_load(&g->missing_bytes) / rate * 1e9);
    return (uint32_t)BASE_MIN(BASE_MAX(ns / 1000000000, 1), 600);
}

static enum err_code check_choices(const struct engine *g, const struct request *r, struct err *e)
{
    if (r->choices_count > g->opt.max_sequences)
        return err_set_param(e, ERR_INVALID, "n", "n is %u: this server runs %u sequences at once",
                             r->choices_count, g->opt.max_sequences);
    return ERR_OK;
}

enum err_code engine_submit(struct engine *g, struct request *r, uint32_t *ret_retry_after_s, struct err *e)
{
    *ret_retry_after_s = 1;
    if (atomic_load(&g->draining))
        return err_set(e, ERR_SHUTDOWN, "the server is shutting down and takes no new requests");
    if (!expert_ok(r->expert, e))
        return err_wrap(e, "%s cannot serve", expert_info(r->expert)->name);
    enum err_code code = experts_check_fit(g->opt.experts, r->expert, r->prompt.count, r->max_tokens, e);
    if (code == ERR_OK)
        code = check_choices(g, r, e);
    if (code != ERR_OK)
        return code;
    r->account.submitted_ns = clock_ns();
    engine_set_state(r, REQUEST_QUEUED);
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

uint32_t engine_queued(struct engine *g)
{
    return atomic_load(&g->queued);
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
    engine_take_submissions(g);
    engine_drop_cancelled(g);
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
    ret->loading = atomic_load(&g->loading);
    ret->expired = atomic_load(&g->expired);
    memtier_stats(g->opt.memtier, &ret->memtier);
    ret->kv_pages = ret->memtier.pages;
    ret->kv_bytes = ret->memtier.bytes_by_kind[MEMTIER_KIND_KV];
}

void engine_expert_tokens(struct engine *g, uint64_t *ret, size_t count)
{
    lock_take(&g->stats_lock);
    memcpy(ret, g->expert_tokens, BASE_MIN(count, experts_count(g->opt.experts)) * sizeof(*ret));
    lock_drop(&g->stats_lock);
}
