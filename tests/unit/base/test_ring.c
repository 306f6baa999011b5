/* The ring: exact capacity, order, every item exactly once under contention, no lost wake-up. */
#include "unit.h"

#include <poll.h>

static struct ring *ring_of(size_t capacity)
{
    struct ring *r = NULL;
    assert_int_equal(ring_open(&r, capacity, NULL), ERR_OK);
    return r;
}

static void *item(uintptr_t n)
{
    return (void *)n; /* never dereferenced */
}

static bool readable(const struct ring *r, int timeout_ms)
{
    struct pollfd p = {.fd = ring_fd(r), .events = POLLIN};
    return poll(&p, 1, timeout_ms) == 1;
}

static void empty_capacity_is_refused(void **state)
{
    struct ring *r = NULL;
    struct err e;
    assert_int_equal(ring_open(&r, 0, &e), ERR_INVALID);
    assert_null(r);
    ring_close(&r);
}

static void holds_exactly_its_capacity_in_order(void **state)
{
    for (size_t capacity = 1; capacity <= 9; capacity++) {
        struct ring *r = ring_of(capacity);
        uintptr_t pushed = 0, popped = 0;
        for (int lap = 0; lap < 5; lap++) {
            for (size_t i = 0; i < capacity; i++)
                assert_true(ring_push(r, item(++pushed)));
            assert_false(ring_push(r, item(99999)));
            assert_int_equal(ring_count(r), capacity);
            for (size_t i = 0; i < (lap % 2 ? capacity : (capacity + 1) / 2); i++)
                assert_ptr_equal(ring_pop(r), item(++popped));
            while (pushed - popped < capacity)
                assert_true(ring_push(r, item(++pushed)));
            while (popped < pushed)
                assert_ptr_equal(ring_pop(r), item(++popped));
            assert_null(ring_pop(r));
            assert_int_equal(ring_count(r), 0);
        }
        ring_close(&r);
        assert_null(r);
    }
}

static void descriptor_polls_readable_until_drained(void **state)
{
    struct ring *r = ring_of(4);
    assert_false(readable(r, 0));
    assert_true(ring_push(r, item(1)));
    assert_true(readable(r, 0));
    assert_true(ring_push(r, item(2)));
    assert_ptr_equal(ring_pop(r), item(1));
    assert_true(readable(r, 0)); /* popping alone does not reset it */
    ring_drain_fd(r);
    assert_false(readable(r, 0));
    assert_true(ring_push(r, item(3)));
    assert_true(readable(r, 0));
    ring_drain_fd(r);
    ring_drain_fd(r);
    ring_wake(r);
    assert_true(readable(r, 0));
    ring_drain_fd(r);
    assert_false(readable(r, 0));
    ring_close(&r);
}

/* ---- contention ---- */

enum { PRODUCERS = 4, CONSUMERS = 3, PER_PRODUCER = 20000, TOTAL = PRODUCERS * PER_PRODUCER };

struct crowd {
    struct ring *ring;
    uintptr_t producer;
    size_t got;                /* items of this consumer */
    unsigned char seen[TOTAL]; /* by this consumer */
    bool out_of_order;
};

static void *produce(void *opaque)
{
    struct crowd *c = opaque;
    for (uintptr_t i = 0; i < PER_PRODUCER; i++) {
        while (!ring_push(c->ring, item(c->producer * PER_PRODUCER + i + 1)))
            (void)sched_yield();
    }
    return NULL;
}

/* Pops until the marker arrives. Items of one producer must come in its order. */
static void *consume(void *opaque)
{
    struct crowd *c = opaque;
    uintptr_t last[PRODUCERS] = {0};
    for (;;) {
        uintptr_t n = (uintptr_t)ring_pop(c->ring);
        if (n == 0) {
            (void)sched_yield();
            continue;
        }
        if (n > TOTAL)
            return NULL;
        uintptr_t producer = (n - 1) / PER_PRODUCER;
        if (n <= last[producer])
            c->out_of_order = true;
        last[producer] = n;
        c->seen[n - 1]++;
        c->got++;
    }
}

static void every_item_arrives_once_under_contention(void **state)
{
    static struct crowd producers[PRODUCERS], consumers[CONSUMERS];
    struct ring *r = ring_of(37);
    pthread_t threads[PRODUCERS + CONSUMERS];
    for (uintptr_t i = 0; i < CONSUMERS; i++) {
        consumers[i].ring = r;
        assert_int_equal(
            thread_start(&threads[PRODUCERS + i], "consume", consume, &consumers[i], NULL), ERR_OK);
    }
    for (uintptr_t i = 0; i < PRODUCERS; i++) {
        producers[i].ring = r;
        producers[i].producer = i;
        assert_int_equal(thread_start(&threads[i], "produce", produce, &producers[i], NULL),
                         ERR_OK);
    }
    for (size_t i = 0; i < PRODUCERS; i++)
        thread_join(threads[i]);
    for (size_t i = 0; i < CONSUMERS; i++) {
        while (!ring_push(r, item(TOTAL + 1)))
            (void)sched_yield();
    }
    for (size_t i = 0; i < CONSUMERS; i++)
        thread_join(threads[PRODUCERS + i]);
    for (size_t n = 0; n < TOTAL; n++) {
        int times = 0;
        for (size_t i = 0; i < CONSUMERS; i++)
            times += consumers[i].seen[n];
        if (times != 1)
            fail_msg("item %zu arrived %d times", n, times);
    }
    for (size_t i = 0; i < CONSUMERS; i++)
        assert_false(consumers[i].out_of_order);
    ring_close(&r);
}

/* Pushes with pauses of random length, so that pushes fall between any two steps of the consumer.
 */
static void *produce_hesitantly(void *opaque)
{
    struct crowd *c = opaque;
    struct rng r;
    rng_init(&r, c->producer);
    for (uintptr_t i = 0; i < PER_PRODUCER; i++) {
        for (volatile uint64_t pause = rng_below(&r, 300); pause > 0;)
            pause = pause - 1;
        while (!ring_push(c->ring, item(i + 1)))
            (void)sched_yield();
    }
    return NULL;
}

/* The consumer sleeps in poll whenever it has popped everything: one lost wake-up and it stays. */
static void consumer_is_always_woken_from(void *(*producer)(void *), size_t capacity)
{
    static struct crowd producers[PRODUCERS];
    struct ring *r = ring_of(capacity);
    pthread_t threads[PRODUCERS];
    for (uintptr_t i = 0; i < PRODUCERS; i++) {
        producers[i].ring = r;
        producers[i].producer = i;
        assert_int_equal(thread_start(&threads[i], "produce", producer, &producers[i], NULL),
                         ERR_OK);
    }
    size_t got = 0;
    bool woken = true;
    while (got < TOTAL && (woken = readable(r, 20000))) {
        ring_drain_fd(r);
        while (ring_pop(r) != NULL)
            got++;
    }
    /* Should it fail, let the producers end before the frame they use is gone. */
    while (got < TOTAL) {
        if (ring_pop(r) != NULL)
            got++;
    }
    for (size_t i = 0; i < PRODUCERS; i++)
        thread_join(threads[i]);
    assert_true(woken);
    ring_close(&r);
}

static void a_sleeping_consumer_is_always_woken(void **state)
{
    consumer_is_always_woken_from(produce, 8);
}

static void pushes_during_a_drain_are_not_lost(void **state)
{
    /* The window is a few hundred ns wide; several rounds make hitting it likely. */
    for (int round = 0; round < 5; round++)
        consumer_is_always_woken_from(produce_hesitantly, TOTAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(empty_capacity_is_refused),
        cmocka_unit_test(holds_exactly_its_capacity_in_order),
        cmocka_unit_test(descriptor_polls_readable_until_drained),
        cmocka_unit_test(every_item_arrives_once_under_contention),
        cmocka_unit_test(a_sleeping_consumer_is_always_woken),
        cmocka_unit_test(pushes_during_a_drain_are_not_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
