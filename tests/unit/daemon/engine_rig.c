/* See engine_rig.h. */
#include "tests/unit/daemon/engine_rig.h"

#include <ftw.h>
#include <time.h>
#include <unistd.h>

#define WAIT_NS 60000000000ull

atomic_bool loads_stop;
atomic_int loads_fail;

void nap(void)
{
    const struct timespec t = {.tv_nsec = 1000000};
    nanosleep(&t, NULL);
}

void nap_for(int ms)
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

void must(enum err_code code, const struct err *e)
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

void rig_open(struct rig *r, const struct rig_options *o)
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
    const struct memtier_options m = {.hbm_bytes = r->budget,
                                      .ddr_bytes = o->ddr,
                                      .spill_bytes = o->spill,
                                      .spill_rate = 1e12, /* anything is worth it */
                                      .fault = fault,
                                      .loader = MEMTIER_LOADER_BUFFERED};
    must(memtier_open(&m, r->store, &r->memtier, &e), &e);
    const struct rdu_node_options n = {.sockets = 2, .threads = 1};
    must(rdu_node_open(&n, &r->node, &e), &e);
    const struct experts_options x = {.store = r->store,
                                      .memtier = r->memtier,
                                      .node = r->node,
                                      .numerics = RDU_NUMERICS_F32,
                                      .exec = RDU_EXEC_FUSED,
                                      .max_step_items = 8,
                                      .max_step_tokens = 64 + 8};
    must(experts_open(&x, &r->experts, &e), &e);
    const struct engine_options g = {
        .experts = r->experts,
        .memtier = r->memtier,
        .node = r->node,
        .generalist = o->generalist ? experts_find(r->experts, o->generalist) : NULL,
        .max_sequences = o->sequences ? o->sequences : 8,
        .max_queue = o->queue ? o->queue : 32,
        .max_defer_ms = o->defer_ms,
        .prefill_chunk = 64,
        .draft_tokens = o->draft};
    must(engine_open(&g, &r->engine, &e), &e);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

void rig_close(struct rig *r)
{
    atomic_store(&loads_stop, false);
    atomic_store(&loads_fail, 0);
    engine_close(&r->engine);
    experts_close(&r->experts);
    rdu_node_close(&r->node);
    struct memtier_stats st;
    do { /* a page that is being spilled goes when it is written */
        memtier_poll(r->memtier);
        memtier_stats(r->memtier, &st);
    } while (st.writes_out > 0);
    assert_true(st.hbm_peak <= r->budget);
    assert_int_equal(st.pages, 0);
    assert_int_equal(st.hbm_pinned, 0);
    memtier_close(&r->memtier);
    memtier_store_close(&r->store);
    nftw(r->dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

struct expert *expert(struct rig *r, const char *name)
{
    struct expert *ex = experts_find(r->experts, name);
    assert_non_null(ex);
    return ex;
}

/* ---- requests
 * ---------------------------------------------------------------------------------------------- */

struct request *ask(struct rig *r, const char *model, uint32_t prompt, uint32_t max_tokens)
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

enum err_code submit(struct rig *r, struct request *q, struct err *e)
{
    uint32_t retry_after_s;
    request_prepare_output(q);
    return engine_submit(r->engine, q, &retry_after_s, e);
}

struct request *run(struct rig *r, struct request *q)
{
    struct err e = {0};
    must(submit(r, q, &e), &e);
    return q;
}

struct request *start(struct rig *r, const char *model, uint32_t prompt, uint32_t max_tokens)
{
    return run(r, ask(r, model, prompt, max_tokens));
}

void wait_state(struct request *q, enum request_state state)
{
    for (uint64_t end = clock_ns() + WAIT_NS; atomic_load(&q->state) < (int)state; nap())
        if (clock_ns() > end)
            fail_msg("a request is still in state %d", atomic_load(&q->state));
}

void wait_tokens(struct request *q, uint32_t events)
{
    for (uint64_t end = clock_ns() + WAIT_NS; request_events(&q->choice[0]) < events; nap())
        if (clock_ns() > end)
            fail_msg("a request has only %u events", request_events(&q->choice[0]));
}

enum request_finish finish_of(const struct request *q, uint32_t choice)
{
    uint32_t n = request_events(&q->choice[choice]);
    return n ? q->choice[choice].events[n - 1].finish : REQUEST_FINISH_NONE;
}

void ends(struct request *q, enum request_finish finish)
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

uint64_t footprint(const char *model, size_t tokens)
{
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    struct expert *ex = expert(&r, model);
    uint64_t bytes = expert_footprint(ex) + experts_kv_bytes(r.experts, ex, tokens);
    rig_close(&r);
    return bytes;
}
