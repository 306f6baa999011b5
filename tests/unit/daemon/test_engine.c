/* The engine over the tiny models of the tree: how requests end, what cancelling does in every
 * state, who goes first, and that two models in memory for one both get on within the budget. Loads
 * can be stopped and made to fail through the tiers' fault hook. */
#include "tests/unit/daemon/engine_rig.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- allocations of the engine's thread
 * ---------------------------------------------------------------- */

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

/* ---- tests
 * ---------------------------------------------------------------------------------------------------
 */

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
    assert_true(finish_of(gone, 0) == REQUEST_FINISH_CANCELLED ||
                finish_of(gone, 0) == REQUEST_FINISH_LENGTH);
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
    struct request *q[3] = {start(&r, "llama", 10, 20), NULL, NULL},
                   *late = ask(&r, "llama", 10, 20);
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
    rig_close(&r);
    rig_open(&r, &(struct rig_options){.hbm = BASE_MIB, .sequences = 4});
    q = ask(&r, "llama", 10, 240);
    assert_int_equal(submit(&r, q, &e), ERR_NO_MEMORY);
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

static void two_bases_share_memory_for_one(uint64_t ddr)
{
    struct rig r;
    struct engine_stats st;
    /* Room for the larger one and pages of all requests, not for both. */
    rig_open(&r, &(struct rig_options){
                     .hbm = footprint("qwen", 64) + 8 * 131072, .ddr = ddr, .defer_ms = 3});
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

/* Loads that end soon are no reason to refuse: those of a cancelled request, those of warming up.
 */
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

/* ---- no allocation per token
 * ------------------------------------------------------------------------------------ */

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

/* ---- no system call per token
 * ----------------------------------------------------------------------------------- */

static atomic_int forbidden_call; /* + 1 */

static void note_call(int signal_no, siginfo_t *info, void *context)
{
    int none = 0;
    atomic_compare_exchange_strong(&forbidden_call, &none, info->si_syscall + 1);
}

/* From here on the calling thread may only wait on a futex; anything else lands in note_call. */
static void forbid_calls(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_futex, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
    };
    const struct sock_fprog program = {BASE_COUNT(code), code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        atomic_store(&forbidden_call, -1);
}

static atomic_int verdict; /* of the tokens up to the 180th, + 1; 0 = not there yet */

static void watch_calls(struct request *q)
{
    uint32_t n = request_events(&q->choice[0]);
    if (n == 20)
        forbid_calls();
    if (n == 180)
        atomic_store(&verdict, 1 + atomic_load(&forbidden_call));
}

/* In a process of its own: the filter stays on the engine's thread for ever. */
static int run_watched(bool break_it)
{
    struct rig r;
    const struct sigaction on_trap = {.sa_sigaction = note_call, .sa_flags = SA_SIGINFO};
    sigaction(SIGSYS, &on_trap, NULL);
    rig_open(&r, &(struct rig_options){.draft = 4});
    /* With everything in memory: the answer to a load may be taken in a while after its last byte.
     */
    ends(start(&r, "psalms", 20, 5), REQUEST_FINISH_LENGTH);
    nap_for(20);
    /* Broken: it ends while it is watched, and the engine goes to wait for work. */
    struct request *q = ask(&r, "psalms", 20, break_it ? 60 : 200);
    q->sampling.temperature = 1;
    q->sampling.top_p = 0.97f;
    q->sampling.repetition_penalty = 1.1f;
    q->notify = watch_calls;
    run(&r, q);
    while (atomic_load(&verdict) == 0 && !(break_it && atomic_load(&forbidden_call)))
        nap();
    return break_it ? atomic_load(&forbidden_call) : atomic_load(&verdict) - 1;
}

static int watched(bool break_it)
{
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        int call = run_watched(break_it);
        _exit(call == 0 ? 0 : call < 0 ? 255 : 1 + (call - 1) % 250);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void tokens_cost_no_system_call(void **state)
{
    if (!COUNTS_ALLOCATIONS)
        skip(); /* sanitizers make calls of their own */
    int call = watched(false);
    if (call == 255)
        skip(); /* no seccomp here */
    if (call != 0)
        fail_msg("system call %d between two tokens", call - 1);
    /* And it would have been seen: at the end of a request the engine polls. */
    assert_int_not_equal(watched(true), 0);
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
        cmocka_unit_test(tokens_cost_no_system_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
