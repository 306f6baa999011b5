/* KV pages between requests: what is computed once, what is found again, and that giving pages back
 * is seen in nobody's tokens. */
#include "daemon/engine_order.h"
#include "tests/unit/daemon/engine_rig.h"

#include <errno.h>

/* A prompt that begins with `shared` tokens common to all and goes on with `own` of number `no`. */
static struct request *ask_after(struct rig *r, const char *model, uint32_t shared, uint32_t own,
                                 uint32_t no, uint32_t max_tokens)
{
    struct request *q = ask(r, model, shared + own, max_tokens);
    for (uint32_t i = 0; i < own; i++)
        q->prompt.ids[shared + i] = (int32_t)(3 + (no * 53 + i * 11) % 450);
    return q;
}

static void same_tokens(const struct request *a, const struct request *b)
{
    uint32_t n = request_events(&a->choice[0]);
    assert_int_equal(n, request_events(&b->choice[0]));
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(a->choice[0].events[i].token, b->choice[0].events[i].token);
}

static struct engine_stats stats_of(struct rig *r)
{
    struct engine_stats st;
    engine_stats(r->engine, &st);
    return st;
}

static void a_shared_beginning_is_prefilled_once(void **state)
{
    enum { N = 16, SHARED = 150, OWN = 9 };
    struct rig r;
    struct request *q[N], *alone[N];
    rig_open(&r, &(struct rig_options){.sequences = 8});
    for (uint32_t i = 0; i < N; i++) {
        alone[i] = ask_after(&r, "llama", SHARED, OWN, i, 12);
        alone[i]->cache_prompt = false;
        wait_state(run(&r, alone[i]), REQUEST_DONE);
    }
    struct engine_stats before = stats_of(&r);
    assert_int_equal(before.prefix_tokens_reused, 0);
    assert_int_equal(before.memtier.pages_idle, 0);
    /* All at once: who comes behind the first waits for its pages. */
    for (uint32_t i = 0; i < N; i++)
        q[i] = run(&r, ask_after(&r, "llama", SHARED, OWN, i, 12));
    uint64_t cached = 0;
    for (uint32_t i = 0; i < N; i++) {
        wait_state(q[i], REQUEST_DONE);
        same_tokens(q[i], alone[i]);
        cached += q[i]->account.cached_tokens;
    }
    struct engine_stats after = stats_of(&r);
    assert_int_equal(cached, after.prefix_tokens_reused);
    /* Four whole pages for all but the first; the rest of the beginning for who came when it was
     * done. */
    assert_in_range(cached, (N - 1) * 128, (N - 1) * (SHARED + OWN - 1));
    assert_int_equal(after.tokens_prefill - before.tokens_prefill, N * (SHARED + OWN) - cached);
    /* Again, one after the other: all but the last token is there. */
    struct request *again = run(&r, ask_after(&r, "llama", SHARED, OWN, 3, 12));
    wait_state(again, REQUEST_DONE);
    same_tokens(again, alone[3]);
    assert_int_equal(again->account.cached_tokens, SHARED + OWN - 1);
    /* Other weights, other pages. */
    struct request *other = run(&r, ask_after(&r, "upper", SHARED, OWN, 3, 12));
    wait_state(other, REQUEST_DONE);
    assert_int_equal(other->account.cached_tokens, 0);
    request_unref(&again);
    request_unref(&other);
    for (uint32_t i = 0; i < N; i++) {
        request_unref(&q[i]);
        request_unref(&alone[i]);
    }
    rig_close(&r);
}

static void the_next_turn_begins_where_the_last_one_ended(void **state)
{
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    struct request *first = start(&r, "psalms", 50, 40), *next = ask(&r, "psalms", 100, 10), *plain;
    wait_state(first, REQUEST_DONE);
    for (uint32_t i = 0; i < 40; i++)
        next->prompt.ids[50 + i] = first->choice[0].events[i].token;
    plain = ask(&r, "psalms", 100, 10);
    memcpy(plain->prompt.ids, next->prompt.ids, 100 * sizeof(int32_t));
    plain->cache_prompt = false;
    wait_state(run(&r, next), REQUEST_DONE);
    wait_state(run(&r, plain), REQUEST_DONE);
    same_tokens(next, plain);
    /* The last token of the answer was handed out, but never run. */
    assert_int_equal(next->account.cached_tokens, 89);
    assert_int_equal(plain->account.cached_tokens, 0);
    request_unref(&first);
    request_unref(&next);
    request_unref(&plain);
    rig_close(&r);
}

static void choices_share_the_pages_of_their_prompt(void **state)
{
    struct rig r;
    struct engine_stats before, after;
    struct request *alone[8];
    for (int cached = 0; cached < 2; cached++) {
        rig_open(&r, &(struct rig_options){0});
        for (uint32_t c = 0; c < 8; c++) {
            alone[c] = ask(&r, "llama", 75, 50);
            alone[c]->sampling.temperature = 1;
            alone[c]->sampling.seed = 7 + c;
            alone[c]->cache_prompt = false;
            wait_state(run(&r, alone[c]), REQUEST_DONE);
        }
        before = stats_of(&r);
        struct request *q = ask(&r, "llama", 75, 50);
        q->sampling.temperature = 1;
        q->sampling.seed = 7;
        q->choices_count = 8;
        q->cache_prompt = cached;
        wait_state(run(&r, q), REQUEST_DONE);
        after = stats_of(&r);
        for (uint32_t c = 0; c < 8; c++) {
            assert_int_equal(request_events(&q->choice[c]), 51);
            for (uint32_t i = 0; i < 50; i++)
                assert_int_equal(q->choice[c].events[i].token, alone[c]->choice[0].events[i].token);
            request_unref(&alone[c]);
        }
        /* Each runs the last token of the prompt for itself, and nothing else of it. */
        assert_int_equal(after.prefix_tokens_reused - before.prefix_tokens_reused, 7 * 74);
        assert_int_equal(after.tokens_prefill - before.tokens_prefill, 75 + 7);
        assert_int_equal(q->account.cached_tokens, 0);
        request_unref(&q);
        rig_close(&r);
    }
}

/* Eight requests that need four times the pages there are, of two bases in memory for one: some
 * give theirs back and begin again, and the tokens are those of a server with room. */
static void tokens_are_the_same_with_too_few_pages(void **state)
{
    enum { N = 8 };
    static const char *const names[] = {"llama", "upper", "qwen", "psalms"};
    struct request *wide[N], *q[N];
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    for (uint32_t i = 0; i < N; i++) {
        wide[i] = ask_after(&r, names[i % 4], 20, 15 + i, i, 180);
        wide[i]->sampling.temperature = i % 2 ? 0.8f : 0;
        wide[i]->sampling.seed = i;
        wait_state(run(&r, wide[i]), REQUEST_DONE);
    }
    rig_close(&r);
    for (int single = 0; single < 2; single++) {
        uint64_t budget = footprint("qwen", 256) + footprint("psalms", 256) / (single ? 1 : 4);
        rig_open(&r, &(struct rig_options){.hbm = budget, .defer_ms = 3});
        for (uint32_t i = 0; i < N; i++) {
            q[i] = ask_after(&r, single ? "llama" : names[i % 4], 20, 15 + i, i, 180);
            q[i]->sampling = wide[i]->sampling;
            run(&r, q[i]);
        }
        for (uint32_t i = 0; i < N; i++) {
            wait_state(q[i], REQUEST_DONE);
            if (finish_of(q[i], 0) != REQUEST_FINISH_LENGTH)
                fail_msg("request %u: %s", i, q[i]->error.msg);
            if (!single || i % 4 == 0)
                same_tokens(q[i], wide[i]);
            request_unref(&q[i]);
        }
        assert_true(stats_of(&r).preemptions > 0);
        rig_close(&r);
    }
    for (uint32_t i = 0; i < N; i++)
        request_unref(&wide[i]);
}

static struct request *turn(struct rig *r, const struct request *before, uint32_t no)
{
    uint32_t n = before ? (uint32_t)before->prompt.count + 20 : 120;
    struct request *q = ask(r, "llama", n, 20);
    for (uint32_t i = 0; i < n; i++)
        q->prompt.ids[i] = (int32_t)(5 + (no * 37 + i * i) % 450);
    for (uint32_t i = 0; before && i < before->prompt.count; i++)
        q->prompt.ids[i] = before->prompt.ids[i];
    return q;
}

/* Conversations come back after many others: their pages had to leave, went to disk and are read
 * again. With a disk that fails they are computed; the tokens are the same. */
static void a_conversation_comes_back_from_disk(void **state)
{
    enum { N = 12 };
    struct rig r;
    struct request *first[N], *second[N], *plain[N];
    struct engine_stats st;
    rig_open(&r, &(struct rig_options){.hbm = footprint("llama", 512) + 12 * 65536,
                                       .spill = 16 * BASE_MIB});
    for (uint32_t i = 0; i < N; i++)
        wait_state(first[i] = run(&r, turn(&r, NULL, i)), REQUEST_DONE);
    st = stats_of(&r);
    assert_true(st.memtier.pages_spilled > N);
    for (uint32_t i = 0; i < N; i++) {
        if (i == N - 3)
            atomic_store(&loads_fail, EIO);
        second[i] = run(&r, turn(&r, first[i], 100 + i));
        wait_state(second[i], REQUEST_DONE);
        atomic_store(&loads_fail, 0);
    }
    uint64_t reads = stats_of(&r).memtier.load_bytes;
    assert_true(reads > st.memtier.load_bytes);
    uint32_t whole = 0;
    for (uint32_t i = 0; i < N; i++) {
        plain[i] = turn(&r, first[i], 100 + i);
        plain[i]->cache_prompt = false;
        wait_state(run(&r, plain[i]), REQUEST_DONE);
        same_tokens(second[i], plain[i]);
        whole += second[i]->account.cached_tokens >= 96;
        request_unref(&first[i]);
        request_unref(&second[i]);
        request_unref(&plain[i]);
    }
    assert_true(whole >= N / 2);
    rig_close(&r);
}

/* The first choice of a scored prompt runs all of it and names no page; the others do. Two such
 * prompts that differ in their first page only must not find each other's second one. */
static void choices_of_a_scored_prompt_leave_no_page_under_a_wrong_name(void **state)
{
    enum { PAGE = 32 };
    struct rig r;
    rig_open(&r, &(struct rig_options){0});
    for (uint32_t no = 0; no < 3; no++) {
        struct request *scored = ask(&r, "llama", 2 * PAGE, 20),
                       *plain = ask(&r, "llama", 2 * PAGE, 20);
        for (uint32_t i = 0; i < PAGE; i++)
            scored->prompt.ids[i] = plain->prompt.ids[i] = (int32_t)(3 + (no * 53 + i * 11) % 450);
        scored->choices_count = 2;
        scored->want_logprobs = plain->want_logprobs = scored->score_prompt = true;
        scored->logprobs = plain->logprobs = 255;
        plain->cache_prompt = false;
        wait_state(run(&r, plain), REQUEST_DONE);
        wait_state(run(&r, scored), REQUEST_DONE);
        for (uint32_t c = 0; c < 2; c++)
            for (uint32_t i = 0; i < 20; i++)
                assert_float_equal(scored->choice[c].events[i].logprob,
                                   plain->choice[0].events[i].logprob, 0);
        request_unref(&scored);
        request_unref(&plain);
    }
    rig_close(&r);
}

static void loaded(struct engine_order *o)
{
    atomic_store((atomic_bool *)o->ctx, true);
}

/* An order that finds no room between the pages of all waits for it; the requests go on without
 * waiting for the order. */
static void an_order_that_waits_for_room_keeps_nobody_from_giving_pages_back(void **state)
{
    enum { N = 6 };
    struct request *q[N];
    struct rig r;
    atomic_bool done = false;
    rig_open(&r, &(struct rig_options){.hbm = footprint("llama", 13 * 32)});
    struct engine_order o = {.kind = ENGINE_ORDER_LOAD,
                             .expert = expert(&r, "psalms"),
                             .patience_ns = 1000000000000ull,
                             .done = loaded,
                             .ctx = &done};
    for (uint32_t i = 0; i < N; i++)
        q[i] = run(&r, ask_after(&r, "llama", 20, 15 + i, i, 180));
    /* Three run and have all pages but one, which is less than the adapter takes; before they end
     * they need twice as many. */
    wait_tokens(q[0], 68);
    engine_order_submit(r.engine, &o);
    for (uint32_t i = 0; i < N; i++)
        ends(q[i], REQUEST_FINISH_LENGTH);
    assert_true(stats_of(&r).preemptions > 0);
    for (uint64_t end = clock_ns() + 60000000000ull; !atomic_load(&done) && clock_ns() < end;)
        nap();
    assert_true(atomic_load(&done));
    assert_int_equal(o.error.code, ERR_OK);
    rig_close(&r);
}

/* Everything is held, and a page on its way to the spill file cannot be evicted: whoever runs alone
 * waits for it instead of being told that there is no room. */
static void pages_that_are_being_spilled_are_waited_for(void **state)
{
    enum { N = 24 };
    struct request *q[N];
    struct rig r;
    rig_open(&r, &(struct rig_options){.hbm = footprint("llama", 256),
                                       .spill = 16 * BASE_MIB,
                                       .generalist = "llama"});
    for (uint32_t i = 0; i < N; i++)
        q[i] = run(&r, ask_after(&r, "llama", 20, 15 + i, i, 180));
    for (uint32_t i = 0; i < N; i++)
        ends(q[i], REQUEST_FINISH_LENGTH);
    rig_close(&r);
}

/* The router's price of a switch reads it without asking the engine. */
static void where_experts_are_is_known_without_an_order(void **state)
{
    struct rig r;
    struct engine_place places[8] = {0};
    rig_open(&r, &(struct rig_options){0});
    size_t count = experts_count(r.experts), llama = expert_index(expert(&r, "llama"));
    assert_true(count <= BASE_COUNT(places));
    ends(start(&r, "llama", 20, 4), REQUEST_FINISH_LENGTH);
    for (uint64_t end = clock_ns() + 20000000000ull;
         places[llama].bytes[MEMTIER_HBM] == 0 && clock_ns() < end; nap())
        engine_places(r.engine, places, count);
    assert_true(places[llama].bytes[MEMTIER_HBM] > 0);
    assert_true(places[expert_index(expert(&r, "qwen"))].bytes[MEMTIER_NVME] > 0);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_shared_beginning_is_prefilled_once),
        cmocka_unit_test(the_next_turn_begins_where_the_last_one_ended),
        cmocka_unit_test(choices_share_the_pages_of_their_prompt),
        cmocka_unit_test(choices_of_a_scored_prompt_leave_no_page_under_a_wrong_name),
        cmocka_unit_test(tokens_are_the_same_with_too_few_pages),
        cmocka_unit_test(a_conversation_comes_back_from_disk),
        cmocka_unit_test(where_experts_are_is_known_without_an_order),
        cmocka_unit_test(pages_that_are_being_spilled_are_waited_for),
        cmocka_unit_test(an_order_that_waits_for_room_keeps_nobody_from_giving_pages_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
