/* The head file: what is written is read back; what is torn, foreign or hostile is refused with its
 * cause. */
#include "support.h"
#include "router/head.h"

static struct buf bytes_of_head;

static int setup_group(void **state)
{
    (void)state;
    bytes_of_head = support_train(NULL);
    return 0;
}

static int teardown_group(void **state)
{
    (void)state;
    buf_done(&bytes_of_head);
    return 0;
}

static char *copy_head(void)
{
    char *copy = mem_array(bytes_of_head.len, 1);
    memcpy(copy, bytes_of_head.data, bytes_of_head.len);
    return copy;
}

/* Make the checksum right again, as a program would that writes nonsense on purpose. */
static void sign_head(char *head, size_t len)
{
    size_t from = offsetof(struct head_header, checksum) + 8;
    uint64_t sum = hash64_of(head + from, len - from, HEAD_SEED);
    memcpy(head + from - 8, &sum, 8);
}

static void expect_refusal(const char *head, size_t len, const char *cause)
{
    struct router_head *h = NULL;
    struct err e = {0};
    assert_int_equal(router_head_parse(head, len, &h, &e), ERR_CORRUPT);
    assert_null(h);
    if (!strstr(e.msg, cause))
        fail_msg("\"%s\" does not say \"%s\"", e.msg, cause);
}

static void written_head_reads_back(void **state)
{
    struct router_head *h;
    struct err e = {0};
    assert_int_equal(router_head_parse(bytes_of_head.data, bytes_of_head.len, &h, &e), ERR_OK);
    assert_int_equal(router_head_labels(h), 4);
    assert_string_equal(router_head_label(h, 0), "counter");
    assert_string_equal(router_head_label(h, 1), "general");
    assert_string_equal(router_head_label(h, 3), "sorter");
    assert_string_equal(router_head_label(h, 4), "");
    assert_int_equal(h->header.general_idx, 1);

    uint64_t *present = mem_array(text_space(&h->header.geometry) / 64, sizeof(*present));
    for (size_t i = 0; i < text_space(&h->header.geometry) / 64; i++)
        present[i] = h->blocks[i].present;
    struct head_parts parts = {h->header, (const char(*)[ROUTER_NAME_MAX])h->labels,
                               h->bias,   h->scale,
                               present,   h->weights};
    struct buf again = {0};
    head_write(&parts, &again);
    assert_int_equal(again.len, bytes_of_head.len);
    assert_memory_equal(again.data, bytes_of_head.data, again.len);
    buf_done(&again);
    free(present);
    router_head_close(&h);
    assert_null(h);
    router_head_close(&h);
}

static void file_errors_name_the_path(void **state)
{
    struct router_head *h = NULL;
    struct err e = {0};
    assert_int_equal(router_head_open("no/such/zoo.head", &h, &e), ERR_NOT_FOUND);
    assert_non_null(strstr(e.msg, "no/such/zoo.head"));
}

static void every_truncation_is_refused(void **state)
{
    for (size_t len = 0; len < bytes_of_head.len; len += len < 200 ? 1 : 4099) {
        /* An allocation of exactly `len` bytes, so that a sanitizer sees any read beyond it. */
        char *cut = malloc(len + (len == 0));
        memcpy(cut, bytes_of_head.data, len);
        expect_refusal(cut, len, len < sizeof(struct head_header) ? "shorter" : "cut or joined");
        free(cut);
    }
}

static void every_flipped_byte_is_refused(void **state)
{
    const uint64_t seed = 77;
    struct rng rng;
    rng_init(&rng, seed);
    char *head = copy_head();
    for (int round = 0; round < 300; round++) {
        size_t at = round < 72 ? (size_t)round : rng_below(&rng, bytes_of_head.len);
        char flip = (char)(1 + rng_below(&rng, 255));
        head[at] ^= flip;
        struct router_head *h = NULL;
        struct err e = {0};
        if (router_head_parse(head, bytes_of_head.len, &h, &e) != ERR_CORRUPT || !e.msg[0])
            fail_msg("seed %llu round %d: flip at %zu passed", (unsigned long long)seed, round, at);
        head[at] ^= flip;
    }
    free(head);
}

/* With the checksum made right, nonsense is refused or harmless: never a crash, never a NaN. */
static void hostile_heads_are_refused_or_harmless(void **state)
{
    const uint64_t seed = 4242;
    struct rng rng;
    rng_init(&rng, seed);
    size_t refused = 0, rounds = 1500;
    for (size_t round = 0; round < rounds; round++) {
        char *head = copy_head();
        size_t flips = 1 + rng_below(&rng, 4);
        for (size_t i = 0; i < flips; i++) {
            size_t most = round % 3 ? sizeof(struct head_header) + 4 * 72 : bytes_of_head.len;
            head[8 + rng_below(&rng, most - 8)] = (char)rng_u64(&rng);
        }
        sign_head(head, bytes_of_head.len);
        struct router_head *h = NULL;
        struct err e = {0};
        if (router_head_parse(head, bytes_of_head.len, &h, &e) == ERR_OK) {
            const char *text = "Translate to Klingon: apple river";
            struct router_decision d = support_decide(h, text, strlen(text), NULL);
            if (!(d.confidence >= 0.0 && d.confidence <= 1.0001))
                fail_msg("seed %llu round %zu: confidence %g", (unsigned long long)seed, round,
                         d.confidence);
            router_head_close(&h);
        } else {
            refused++;
        }
        free(head);
    }
    assert_true(refused > rounds / 10);
}

/* `bytes` put over a good head at `at`. */
static void expect_patched(size_t at, const char *bytes, size_t count, const char *cause)
{
    struct buf b = {0};
    buf_append(&b, bytes_of_head.data, at);
    buf_append(&b, bytes, count);
    buf_append(&b, bytes_of_head.data + at + count, bytes_of_head.len - at - count);
    sign_head(b.data, b.len);
    expect_refusal(b.data, b.len, cause);
    buf_done(&b);
}

static void each_nonsense_has_its_cause(void **state)
{
    struct head_header header;
    const size_t len = bytes_of_head.len;
    char *head = copy_head();
    head[0] = 'X';
    expect_refusal(head, len, "not a head file");
    memcpy(&header, bytes_of_head.data, sizeof(header));

#define WITH(change, cause)                                                                        \
    do {                                                                                           \
        struct head_header old = header;                                                           \
        change;                                                                                    \
        memcpy(head, &header, sizeof(header));                                                     \
        header = old;                                                                              \
        sign_head(head, len);                                                                      \
        expect_refusal(head, len, cause);                                                          \
    } while (0)
    WITH(header.version = 99, "version 99");
    WITH(header.header_bytes = 8, "wrong size");
    WITH(header.geometry.word_bits = 60, "geometry");
    WITH(header.labels = 0, "number of labels");
    WITH(header.labels = 4000000000u, "number of labels");
    WITH(header.labels = 5, "add up");
    WITH(header.features += 1, "add up");
    WITH(header.features = 0xFFFFFFFFu, "add up");
    WITH(header.general_idx = 4, "generalist");
    WITH(header.temperature = 0.0f, "temperature");
    WITH(header.temperature = (float)NAN, "temperature");
    WITH(header.threshold = 1.5f, "threshold");
    WITH(header.stay = 1.0f, "stay");
#undef WITH
    free(head);

    const size_t labels = sizeof(header), numbers = labels + 4 * ROUTER_NAME_MAX;
    char endless[ROUTER_NAME_MAX];
    memset(endless, 'x', sizeof(endless));
    expect_patched(labels + ROUTER_NAME_MAX, "counter", 8, "equal");
    expect_patched(labels, "", 1, "empty");
    expect_patched(labels, endless, sizeof(endless), "too long");
    expect_patched(labels, "\xff\xfe", 3, "UTF-8");
    expect_patched(numbers, "\xff\xff\xff\xff", 4, "sane");
    expect_patched(numbers + 16, "\xff\xff\x7f\x7f", 4, "sane");
    expect_patched(numbers + 32, "\xff\xff\xff\xff\xff\xff\xff\xff", 8, "feature map");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(written_head_reads_back),
        cmocka_unit_test(file_errors_name_the_path),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(every_flipped_byte_is_refused),
        cmocka_unit_test(hostile_heads_are_refused_or_harmless),
        cmocka_unit_test(each_nonsense_has_its_cause),
    };
    return cmocka_run_group_tests(tests, setup_group, teardown_group);
}
