/* The engine over the tiny models of the tree: how requests end, what cancelling does in every state, who
 * goes first, and that two models in memory for one both get on within the budget. Loads can be stopped and
 * made to fail through the tiers' fault hook. */
#include <errno.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/engine.h"

#define WAIT_NS 60000000000ull

/* ---- allocations of the engine's thread ---------------------------------------------------------------- */

static _Thread_local bool counting; /* set in notify, which the engine calls */
static atomic_uint allocations;

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COUNTS_ALLOCATIONS 1
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t count, size_t n);
void *__libc_realloc(void *p, size_t n);

void *malloc(size_t n)
{
    atomic_fetch_add(&allocations, counting);
    return __libc_malloc(n);
}

void *calloc(size_t count, size_t n)
{
    atomic_fetch_add(&allocations, counting);
    return __libc_calloc(count, n);
}

void *realloc(void *p, size_t n)
{
    atomic_fetch_add(&allocations, counting);
    return __libc_realloc(p, n);
}
#else
#define COUNTS_ALLOCATIONS 0
#endif

/* ---- the rig ---------------------------------------------------------------------------------------------- */

static atomic_bool loads_stop;
static atomic_int loads_fail;

static void nap(void)
{
    const struct timespec t = {.tv_nsec = 1000000};
    nanosleep(&t, NULL);
}

static void nap_for(int ms)
{
    while (ms-- > 0)
        nap();
}

static int fault(void *ctx, uint64_t file_offset, size_t bytes)
{
    while (atomic_load(&loads_stop))
        nap();
    return atomic_load(&loads_fail);
}

struct rig {
    char dir[64];
    struct memtier_store *store;
    struct memtier *memtier;
    struct rdu_node *node;
    struct experts *experts;
    struct engine *engine;
    uint64_t budget;
};

struct rig_options {
    uint64_t hbm, ddr;
    uint32_t sequences, queue, defer_ms;
    const char *generalist;
};

static void must(enum err_code code, const struct err *e)
{
    if (code != ERR_OK)
        fail_msg("%s", e->msg);
}

static void add(struct rig *r, const char *file, const char *name, const char *base)
{
    struct err e = {0};
    struct expert_add_report report;
    const char *source = getenv("SWITCHYARD_SOURCE");
    char *path = mem_format("%s/tests/data/tiny/%s", source ? source : ".", file);
    const struct expert_add_options o = {.path = path, .name = name, .base = base};
    must(experts_add(r->store, &o, NULL, &report, &e), &e);
    free(path);
}

/* llama and qwen are two bases of about a half MiB; upper and psalms adapters over llama. */
static void rig_open(struct rig *r, const struct rig_options *o)
{
    struct err e = {0};
    *r = (struct rig){0};
    strcpy(r->dir, "/tmp/switchyard-engine-XXXXXX");
    assert_non_null(mkdtemp(r->dir));
    must(memtier_store_open(r->dir, MEMTIER_WRITE, &r->store, &e), &e);
    add(r, "tiny-llama-f32.gguf", "llama", NULL);
    add(r, "tiny-qwen2-f32.gguf", "qwen", NULL);
    add(r, "lora-upper.gguf", "upper", "llama");
    add(r, "lora-psalms.gguf", "psalms", "llama");
    memtier_store_close(&r->store);
    must(memtier_store_open(r->dir, MEMTIER_SERVE, &r->store, &e), &e);
    r->budget = o->hbm ? o->hbm : 64 * BASE_MIB;
    const struct memtier_options m = {.hbm_bytes = r->budget, .ddr_bytes = o->ddr, .fault = fault,
                                      .loader = MEMTIER_LOADER_BUFFERED};
    must(memtier_open(&m, r->store, &r->memtier, &e), &e);
    const struct rdu_node_options n = {.sockets = 2, .threads = 1};
    must(rdu_node_open(&n, &r->node, &e), &e);
    const struct experts_options x = {.store = r->store, .memtier = r->memtier, .node = r->node,
                                      .numerics = RDU_NUMERICS_F32, .exec = RDU_EXEC_FUSED,
                                      .max_step_items = 8, .max_step_tokens = 64 + 8};
    must(experts_open(&x, &r->experts, &e), &e);
    const struct engine_options g = {
        .experts = r->experts, .memtier = r->memtier, .node = r->node,
        .generalist = o->generalist ? experts_find(r->experts, o->generalist) : NULL,
        .max_sequences = o->sequences ? o->sequences : 8, .max_queue = o->queue ? o->queue : 32,
        .max_defer_ms = o->defer_ms, .prefill_chunk = 64};
    must(engine_open(&g, &r->engine, &e), &e);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

static void rig_close(struct rig *r)
{
    atomic_store(&loads_stop, false);
    atomic_store(&loads_fail, 0);
    engine_close(&r->engine);
    experts_close(&r->experts);
    rdu_node_close(&r->node);
    struct memtier_stats st;
    memtier_stats(r->memtier, &st);
    assert_true(st.hbm_peak <= r->budget);
    assert_int_equal(st.pages, 0);
    assert_int_equal(st.hbm_pinned, 0);
    memtier_close(&r->memtier);
    memtier_store_close(&r->store);
    nftw(r->dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static struct expert *expert(struct rig *r, const char *name)
{
    struct expert *ex = experts_find(r->experts, name);
    assert_non_null(ex);
    return ex;
}

/* ---- requests ---------------------------------------------------------------------------------------------- */

static struct request *ask(struct rig *r, const char *model, uint32_t prompt, uint32_t max_tokens)
{
    struct request *q = request_open();
    q->expert = expert(r, model);
    for (uint32_t i = 0; i < prompt; i++) {
        q->prompt.ids = mem_grow(q->prompt.ids, i + 1, sizeof(*q->prompt.ids));
        q->prompt.ids[q->prompt.count++] = (int32_t)(40 + i * 7 % 400);
    }
    q->sampling.temperature = 0;
    q->sampling.ignore_eos = true;
    q->max_tokens = max_tokens;
    return q;
}

static enum err_code submit(struct rig *r, struct request *q, struct err *e)
{
    uint32_t retry_after_s;
    request_prepare_output(q);
    return engine_submit(r->engine, q, &retry_after_s, e);
}

static struct request *run(struct rig *r, struct request *q)
{
    struct err e = {0};
    must(submit(r, q, &e), &e);
    return q;
}

static struct request *start(struct rig *r, const char *model, uint32_t prompt, uint32_t max_tokens)
{
    return run(r, ask(r, model, prompt, max_tokens));
}

static void wait_state(struct request *q, enum request_state state)
{
    for (uint64_t end = clock_ns() + WAIT_NS; atomic_load(&q->state) < (int)state; nap())
        if (clock_ns() > end)
            fail_msg("a request is still in state %d", atomic_load(&q->state));
}

static void wait_tokens(struct request *q, uint32_t events)
{
    for (uint64_t end = clock_ns() + WAIT_NS; request_events(&q->choice[0]) < events; nap())
        if (clock_ns() > end)
            fail_msg("a request has only %u events", request_events(&q->choice[0]));
}

static enum request_finish finish_of(const struct request *q, uint32_t choice)
{
    uint32_t n = request_events(&q->choice[choice]);
    return n ? q->choice[choice].events[n - 1].finish : REQUEST_FINISH_NONE;
}

/* Waits for the end, checks it, gives the request back. */
static void ends(struct request *q, enum request_finish finish)
{
    wait_state(q, REQUEST_DONE);
    if (finish_of(q, 0) != finish)
        fail_msg("ended with %s (%s), not %s", request_finish_name(finish_of(q, 0)), q->error.msg,
                 request_finish_name(finish));
    if (finish == REQUEST_FINISH_LENGTH) {
        assert_int_equal(request_events(&q->choice[0]), q->max_tokens + 1);
        assert_int_equal(q->account.completion_tokens, q->max_tokens * q->choices_count);
    }
    request_unref(&q);
}

/* ---- tests --------------------------------------------------------------------------------------------------- */

static void choices_of_one_request_end_alike_and_are_accounted_once(void **state)
{
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    struct request *one = start(&r, "llama", 30, 20), *three = ask(&r, "llama", 30, 20);
    wait_state(one, REQUEST_DONE);
    three->choices_count = 3;
    run(&r, three);
    wait_state(three, REQUEST_DONE);
    for (uint32_t c = 0; c < 3; c++) {
        assert_int_equal(finish_of(three, c), REQUEST_FINISH_LENGTH);
        for (uint32_t i = 0; i < 20; i++)
            assert_int_equal(three->choice[c].events[i].token, one->choice[0].events[i].token);
    }
    assert_true(three->account.origin == MEMTIER_HBM && one->account.origin == MEMTIER_NVME);
    assert_int_equal(three->account.load_bytes, 0);
    assert_true(one->account.load_bytes > 0);
    /* Eight choices in one step: the time in the account cannot exceed the time that passed. */
    struct request *eight = ask(&r, "llama", 8, 1);
    eight->choices_count = 8;
    run(&r, eight);
    wait_state(eight, REQUEST_DONE);
    const struct request_account *a = &eight->account;
    assert_true(a->prefill_ns > 0 && a->prefill_ns + a->load_ns <= a->done_ns - a->submitted_ns);
    request_unref(&eight);
    request_unref(&one);
    request_unref(&three);
    rig_close(&r);
}

static void a_queued_request_is_cancelled_at_once(void **state)
{
    struct rig r;
    atomic_store(&loads_stop, true);
    rig_open(&r, &(struct rig_options){.sequences = 1});
    struct request *first = start(&r, "llama", 10, 200), *second = start(&r, "llama", 10, 200);
    wait_state(first, REQUEST_LOADING);
    engine_cancel(r.engine, second);
    ends(second, REQUEST_FINISH_CANCELLED);
    atomic_store(&loads_stop, false);
    ends(first, REQUEST_FINISH_LENGTH);
    rig_close(&r);
}

static void a_loading_request_is_cancelled_and_its_batch_goes_on(void **state)
{
    struct rig r;
    atomic_store(&loads_stop, true);
    rig_open(&r, &(struct rig_options){0});
    struct request *gone = start(&r, "llama", 10, 20), *stays = start(&r, "llama", 12, 20);
    wait_state(gone, REQUEST_LOADING);
    engine_cancel(r.engine, gone);
    ends(gone, REQUEST_FINISH_CANCELLED);
    assert_int_equal(request_events(&stays->choice[0]), 0);
    atomic_store(&loads_stop, false);
    ends(stays, REQUEST_FINISH_LENGTH);
    rig_close(&r);
}

static void a_running_request_is_cancelled_within_its_tokens(void **state)
{
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    struct request *gone = start(&r, "psalms", 10, 240), *stays = start(&r, "llama", 10, 100);
    wait_tokens(gone, 3);
    engine_cancel(r.engine, gone);
    wait_state(gone, REQUEST_DONE);
    assert_true(finish_of(gone, 0) == REQUEST_FINISH_CANCELLED || finish_of(gone, 0) == REQUEST_FINISH_LENGTH);
    request_unref(&gone);
    ends(stays, REQUEST_FINISH_LENGTH);
    rig_close(&r);
}

static void closing_ends_what_queues_loads_and_runs(void **state)
{
    struct rig r;
    rig_open(&r, &(struct rig_options){.sequences = 2});
    struct request *running = start(&r, "llama", 10, 240);
    wait_tokens(running, 1);
    atomic_store(&loads_stop, true);
    struct request *loading = start(&r, "qwen", 10, 20), *queued = start(&r, "qwen", 10, 20);
    wait_state(loading, REQUEST_LOADING);
    engine_close(&r.engine);
    assert_true(finish_of(running, 0) != REQUEST_FINISH_NONE);
    request_unref(&running);
    ends(loading, REQUEST_FINISH_CANCELLED);
    ends(queued, REQUEST_FINISH_CANCELLED);
    rig_close(&r);
}

static void a_full_queue_and_a_draining_engine_refuse(void **state)
{
    struct rig r;
    struct err e = {0};
    atomic_store(&loads_stop, true);
    rig_open(&r, &(struct rig_options){.sequences = 1, .queue = 2});
    struct request *q[3] = {start(&r, "llama", 10, 20), NULL, NULL}, *late = ask(&r, "llama", 10, 20);
    wait_state(q[0], REQUEST_LOADING);
    q[1] = start(&r, "llama", 10, 20);
    q[2] = start(&r, "llama", 10, 20);
    assert_int_equal(submit(&r, late, &e), ERR_QUEUE_FULL);
    request_unref(&late);
    assert_false(engine_idle(r.engine));
    engine_drain(r.engine);
    late = ask(&r, "llama", 10, 20);
    assert_int_equal(submit(&r, late, &e), ERR_SHUTDOWN);
    request_unref(&late);
    atomic_store(&loads_stop, false);
    for (int i = 0; i < 3; i++)
        ends(q[i], REQUEST_FINISH_LENGTH);
    assert_true(engine_idle(r.engine));
    rig_close(&r);
}

static void what_never_fits_is_refused_with_the_reason(void **state)
{
    struct rig r;
    struct err e = {0};
    rig_open(&r, &(struct rig_options){.hbm = 2 * BASE_MIB, .sequences = 4});
    struct request *q = ask(&r, "llama", 100, 157);
    assert_int_equal(submit(&r, q, &e), ERR_CONTEXT);
    request_unref(&q);
    q = ask(&r, "llama", 10, 20);
    q->choices_count = 5;
    assert_int_equal(submit(&r, q, &e), ERR_INVALID);
    request_unref(&q);
    q = ask(&r, "llama", 10, 240);
    q->choices_count = 4;
    assert_int_equal(submit(&r, q, &e), ERR_NO_MEMORY);
    assert_string_equal(e.param, "n");
    request_unref(&q);
    rig_close(&r);
}

static void higher_priority_leaves_the_queue_first(void **state)
{
    struct rig r;
    atomic_store(&loads_stop, true);
    rig_open(&r, &(struct rig_options){.sequences = 1});
    struct request *first = start(&r, "llama", 10, 100), *low = ask(&r, "llama", 10, 20),
                   *high = ask(&r, "llama", 10, 20);
    low->priority = 0;
    high->priority = 5;
    wait_state(first, REQUEST_LOADING);
    run(&r, low);
    run(&r, high);
    atomic_store(&loads_stop, false);
    ends(first, REQUEST_FINISH_LENGTH);
    wait_state(low, REQUEST_DONE);
    wait_state(high, REQUEST_DONE);
    assert_true(high->account.admitted_ns < low->account.admitted_ns);
    ends(low, REQUEST_FINISH_LENGTH);
    ends(high, REQUEST_FINISH_LENGTH);
    rig_close(&r);
}

static void a_failed_load_ends_its_requests_only_and_is_tried_again(void **state)
{
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    struct request *warm = start(&r, "llama", 10, 5);
    ends(warm, REQUEST_FINISH_LENGTH);
    atomic_store(&loads_fail, EIO);
    struct request *plain = start(&r, "llama", 10, 200), *other = start(&r, "qwen", 10, 20),
                   *adapted = start(&r, "upper", 10, 20);
    wait_state(adapted, REQUEST_DONE);
    assert_int_equal(adapted->error.code, ERR_LOAD_FAILED);
    ends(adapted, REQUEST_FINISH_ERROR);
    ends(other, REQUEST_FINISH_ERROR);
    ends(plain, REQUEST_FINISH_LENGTH);
    atomic_store(&loads_fail, 0);
    ends(start(&r, "upper", 10, 20), REQUEST_FINISH_LENGTH);
    ends(start(&r, "qwen", 10, 20), REQUEST_FINISH_LENGTH);
    rig_close(&r);
}

/* What `model` and so many tokens of KV take, learned from a server with room. */
static uint64_t footprint(const char *model, size_t tokens)
{
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    struct expert *ex = expert(&r, model);
    uint64_t bytes = expert_footprint(ex) + experts_kv_bytes(r.experts, ex, tokens);
    rig_close(&r);
    return bytes;
}

static void two_bases_share_memory_for_one(uint64_t ddr)
{
    struct rig r;
    struct engine_stats st;
    /* Room for the larger one and pages of all requests, not for both. */
    rig_open(&r, &(struct rig_options){.hbm = footprint("qwen", 64) + 8 * 131072, .ddr = ddr, .defer_ms = 3});
    assert_true(expert_footprint(expert(&r, "llama")) > 8 * 131072 / 2);
    struct request *q[8];
    for (int i = 0; i < 8; i++)
        q[i] = start(&r, (const char *[]){"llama", "qwen", "upper", "psalms"}[i % 4], 20, 40);
    for (int i = 0; i < 8; i++)
        ends(q[i], REQUEST_FINISH_LENGTH);
    engine_stats(r.engine, &st);
    assert_true(st.memtier.hbm_peak <= r.budget);
    assert_int_equal(st.requests_done, 8);
    assert_int_equal(st.requests_failed, 0);
    rig_close(&r);
}

static void two_bases_in_memory_for_one_both_progress(void **state)
{
    two_bases_share_memory_for_one(0);
}

static void two_bases_in_memory_for_one_progress_over_ddr(void **state)
{
    two_bases_share_memory_for_one(4 * BASE_MIB);
}

/* Loads that end soon are no reason to refuse: those of a cancelled request, those of warming up. */
static void a_request_waits_for_memory_that_is_still_being_loaded_into(void **state)
{
    struct rig r;
    uint64_t budget = footprint("llama", 15) + footprint("qwen", 15);
    atomic_store(&loads_stop, true);
    rig_open(&r, &(struct rig_options){.hbm = budget, .sequences = 2});
    struct request *gone[2] = {start(&r, "llama", 10, 5), start(&r, "qwen", 10, 5)};
    struct request *next = start(&r, "llama", 50, 200);
    for (int i = 0; i < 2; i++)
        wait_state(gone[i], REQUEST_LOADING);
    engine_cancel(r.engine, gone[0]);
    engine_cancel(r.engine, gone[1]);
    for (int i = 0; i < 2; i++)
        ends(gone[i], REQUEST_FINISH_CANCELLED);
    nap_for(20);
    atomic_store(&loads_stop, false);
    ends(next, REQUEST_FINISH_LENGTH);
    rig_close(&r);

    budget = footprint("qwen", 250);
    atomic_store(&loads_stop, true);
    rig_open(&r, &(struct rig_options){.hbm = budget, .generalist = "psalms"});
    next = start(&r, "qwen", 50, 200);
    nap_for(20);
    assert_false(engine_ready(r.engine));
    atomic_store(&loads_stop, false);
    ends(next, REQUEST_FINISH_LENGTH);
    assert_true(engine_ready(r.engine));
    rig_close(&r);
}

/* ---- no allocation per token ------------------------------------------------------------------------------------ */

static atomic_uint allocations_at[2];

static void note_allocations(struct request *q)
{
    uint32_t n = request_events(&q->choice[0]);
    counting = true;
    if (n == 20 || n == 180)
        atomic_store(&allocations_at[n == 180], atomic_load(&allocations));
}

static void tokens_cost_no_allocation(void **state)
{
    if (!COUNTS_ALLOCATIONS)
        skip();
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    struct request *q = ask(&r, "psalms", 20, 200);
    q->sampling.temperature = 1;
    q->sampling.top_p = 0.97f;
    q->sampling.repetition_penalty = 1.1f;
    q->notify = note_allocations;
    ends(run(&r, q), REQUEST_FINISH_LENGTH);
    /* 160 tokens: at most a block of text or two. */
    assert_in_range(atomic_load(&allocations_at[1]) - atomic_load(&allocations_at[0]), 0, 2);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(choices_of_one_request_end_alike_and_are_accounted_once),
        cmocka_unit_test(a_queued_request_is_cancelled_at_once),
        cmocka_unit_test(a_loading_request_is_cancelled_and_its_batch_goes_on),
        cmocka_unit_test(a_running_request_is_cancelled_within_its_tokens),
        cmocka_unit_test(closing_ends_what_queues_loads_and_runs),
        cmocka_unit_test(a_full_queue_and_a_draining_engine_refuse),
        cmocka_unit_test(what_never_fits_is_refused_with_the_reason),
        cmocka_unit_test(higher_priority_leaves_the_queue_first),
        cmocka_unit_test(a_failed_load_ends_its_requests_only_and_is_tried_again),
        cmocka_unit_test(two_bases_in_memory_for_one_both_progress),
        cmocka_unit_test(two_bases_in_memory_for_one_progress_over_ddr),
        cmocka_unit_test(a_request_waits_for_memory_that_is_still_being_loaded_into),
        cmocka_unit_test(tokens_cost_no_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
