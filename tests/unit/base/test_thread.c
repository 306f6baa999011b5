/* Threads have names and blocked signals; locks out of order abort with both names. */
#include "unit.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- locks ---- */

static struct lock low, high, high_too;

static int setup(void **state)
{
    lock_init(&low, LOCK_RANK_SERVER, "low");
    lock_init(&high, LOCK_RANK_NODE, "high");
    lock_init(&high_too, LOCK_RANK_NODE, "high too");
    return 0;
}

static int teardown(void **state)
{
    lock_done(&low);
    lock_done(&high);
    lock_done(&high_too);
    return 0;
}

/* Run `fn` in a child; its stderr goes to `text`. Returns the signal that ended it, 0 for none. */
static int signal_of(void (*fn)(void), char *text, size_t cap)
{
#ifdef NDEBUG
    print_message("built without assertions: lock ranks are not checked\n");
    skip();
#endif
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        (void)dup2(ends[1], STDERR_FILENO);
        (void)close(ends[0]);
        /* The test runner of the parent must not catch the abort. */
        (void)signal(SIGABRT, SIG_DFL);
        fn();
        _exit(0);
    }
    (void)close(ends[1]);
    size_t len = 0;
    ssize_t n;
    while ((n = read(ends[0], text + len, cap - 1 - len)) > 0)
        len += (size_t)n;
    text[len] = '\0';
    (void)close(ends[0]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void take_in_order(void)
{
    lock_take(&low);
    lock_take(&high);
    lock_drop(&low); /* dropping in any order is fine */
    lock_drop(&high);
    lock_take(&high);
    lock_drop(&high);
    lock_take(&low);
    lock_drop(&low);
}

static void take_out_of_order(void)
{
    lock_take(&high);
    lock_take(&low);
}

static void take_equal_ranks(void)
{
    lock_take(&high);
    lock_take(&high_too);
}

static void drop_what_is_not_held(void)
{
    lock_drop(&low);
}

static void increasing_ranks_are_fine(void **state)
{
    char text[4096];
    assert_int_equal(signal_of(take_in_order, text, sizeof(text)), 0);
    assert_string_equal(text, "");
}

static void decreasing_ranks_abort_and_name_both(void **state)
{
    char text[4096];
    assert_int_equal(signal_of(take_out_of_order, text, sizeof(text)), SIGABRT);
    assert_non_null(strstr(text, "'low' (rank 10) taken while 'high' (rank 60) is held"));
}

static void equal_ranks_abort(void **state)
{
    char text[4096];
    assert_int_equal(signal_of(take_equal_ranks, text, sizeof(text)), SIGABRT);
    assert_non_null(strstr(text, "high too"));
}

static void dropping_a_free_lock_aborts(void **state)
{
    char text[4096];
    assert_int_equal(signal_of(drop_what_is_not_held, text, sizeof(text)), SIGABRT);
    assert_non_null(strstr(text, "does not hold"));
}

static long shared_counter;

static void *count_up(void *opaque)
{
    for (int i = 0; i < 50000; i++) {
        lock_take(&low);
        shared_counter++;
        lock_drop(&low);
    }
    return NULL;
}

static void the_lock_excludes(void **state)
{
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(thread_start(&threads[i], "count", count_up, NULL, NULL), ERR_OK);
    for (size_t i = 0; i < 4; i++)
        thread_join(threads[i]);
    assert_int_equal(shared_counter, 200000);
}

/* ---- threads ---- */

struct seen {
    char name[16];
    sigset_t mask;
};

static void *look_around(void *opaque)
{
    struct seen *seen = opaque;
    (void)pthread_getname_np(pthread_self(), seen->name, sizeof(seen->name));
    (void)pthread_sigmask(SIG_SETMASK, NULL, &seen->mask);
    return NULL;
}

static void thread_has_its_name_cut_to_the_limit(void **state)
{
    struct seen seen;
    pthread_t t;
    assert_int_equal(thread_start(&t, "loader", look_around, &seen, NULL), ERR_OK);
    thread_join(t);
    assert_string_equal(seen.name, "loader");
    assert_int_equal(thread_start(&t, "a name that is far too long", look_around, &seen, NULL),
                     ERR_OK);
    thread_join(t);
    assert_string_equal(seen.name, "a name that is ");
}

static void signals_go_to_the_starter_only(void **state)
{
    sigset_t before, after;
    (void)pthread_sigmask(SIG_SETMASK, NULL, &before);
    struct seen seen;
    pthread_t t;
    assert_int_equal(thread_start(&t, "x", look_around, &seen, NULL), ERR_OK);
    thread_join(t);
    (void)pthread_sigmask(SIG_SETMASK, NULL, &after);
    const int blocked[] = {SIGTERM, SIGINT, SIGHUP, SIGPIPE, SIGUSR1, SIGCHLD};
    for (size_t i = 0; i < BASE_COUNT(blocked); i++) {
        assert_true(sigismember(&seen.mask, blocked[i]));
        assert_int_equal(sigismember(&before, blocked[i]), sigismember(&after, blocked[i]));
    }
    assert_false(sigismember(&seen.mask, SIGSEGV));
    assert_false(sigismember(&seen.mask, SIGBUS));
}

static void clocks_go_forward(void **state)
{
    uint64_t a = clock_ns(), thread_a = clock_thread_ns();
    assert_true(clock_wall_ms() > 1600000000000u);
    volatile uint64_t sink = 0;
    for (uint64_t i = 0; i < 2000000; i++)
        sink = sink + i;
    uint64_t thread_spent = clock_thread_ns() - thread_a, spent = clock_ns() - a;
    assert_true(thread_spent > 0);
    /* Both clocks tick in nanoseconds; 1 ms covers their different granularity. */
    assert_true(spent + 1000000 >= thread_spent);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(increasing_ranks_are_fine),
        cmocka_unit_test(decreasing_ranks_abort_and_name_both),
        cmocka_unit_test(equal_ranks_abort),
        cmocka_unit_test(dropping_a_free_lock_aborts),
        cmocka_unit_test(the_lock_excludes),
        cmocka_unit_test(thread_has_its_name_cut_to_the_limit),
        cmocka_unit_test(signals_go_to_the_starter_only),
        cmocka_unit_test(clocks_go_forward),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
