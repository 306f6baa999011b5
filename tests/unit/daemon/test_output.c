/* From tokens to visible text, over the tiny model's byte-level tokenizer: stop strings wherever token
 * borders fall, UTF-8 whole or not at all, everything shown in the end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/output.h"

static struct tokenizer *tokenizer;

static int open_tokenizer(void **state)
{
    struct err e = {0};
    struct gguf *g = NULL;
    const char *source = getenv("SWITCHYARD_SOURCE");
    char *path = mem_format("%s/tests/data/tiny/tiny-llama-f32.gguf", source ? source : ".");
    enum err_code code = gguf_open(path, &g, &e);
    if (code == ERR_OK)
        code = tokenizer_open(g, &tokenizer, &e);
    if (code != ERR_OK)
        print_error("%s\n", e.msg);
    gguf_close(&g);
    free(path);
    return code == ERR_OK ? 0 : -1;
}

static int close_tokenizer(void **state)
{
    tokenizer_close(&tokenizer);
    return 0;
}

static struct token_list encode(const char *text)
{
    struct err e = {0};
    struct token_list t = {0};
    if (tokenizer_encode(tokenizer, text, strlen(text), false, &t, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    return t;
}

/* What a reader sees of `tokens`, checked after each of them; true = ended by a stop string. */
static bool show(const struct token_list *tokens, char **stops, uint32_t stops_count, struct buf *visible)
{
    struct output o;
    bool stopped = false;
    output_init(&o, tokenizer, stops, stops_count);
    for (size_t i = 0; i < tokens->count && !stopped; i++) {
        stopped = output_push(&o, tokens->ids[i], visible);
        if (!utf8_valid(visible->data ? visible->data : "", visible->len))
            fail_msg("after token %zu the text ends inside a character", i);
    }
    if (!stopped)
        output_end(&o, visible);
    output_done(&o);
    return stopped;
}

static void shows(const char *text, char *stop, const char *expected, bool stopped)
{
    struct token_list t = encode(text);
    struct buf visible = {0};
    assert_int_equal(show(&t, &stop, stop ? 1 : 0, &visible), stopped);
    assert_string_equal(visible.data ? visible.data : "", expected);
    buf_done(&visible);
    free(t.ids);
}

static void text_before_a_stop_string_is_shown_and_nothing_after(void **state)
{
    shows("In the beginning", NULL, "In the beginning", false);
    shows("In the beginning STOP and on", "STOP", "In the beginning ", true);
    shows("In the beginning STO", "STOP", "In the beginning STO", false);
    shows("STOP", "STOP", "", true);
    shows("aaaaab", "aab", "aaa", true);
    shows("one\n\ntwo", "\n\n", "one", true);
    shows("caf\xc3\xa9 \xe2\x82\xac 5", "\xe2\x82\xac", "caf\xc3\xa9 ", true);
}

/* Token by token, the shortest text in which a stop string can be seen decides; the earliest one in it. */
static bool reference(const struct token_list *t, char **stops, uint32_t stops_count, struct buf *ret)
{
    for (size_t i = 0; i < t->count; i++) {
        size_t len, first = SIZE_MAX;
        const char *bytes = tokenizer_token_bytes(tokenizer, t->ids[i], false, &len);
        buf_append(ret, bytes, len);
        for (uint32_t k = 0; k < stops_count; k++) {
            const char *hit = memmem(ret->data, ret->len, stops[k], strlen(stops[k]));
            if (hit)
                first = BASE_MIN(first, (size_t)(hit - ret->data));
        }
        if (first == SIZE_MAX)
            continue;
        ret->len = first;
        ret->data[first] = 0;
        return true;
    }
    return false;
}

static void random_text(struct rng *rng, size_t pieces, char *ret)
{
    static const char *const piece[] = {"a", "b", "ab", " the", " LORD", "\n", "\xc3\xa9", "\xe2\x82\xac",
                                        "\xf0\x9f\x98\x80"};
    *ret = 0;
    for (size_t i = 0; i < pieces; i++)
        strcat(ret, piece[rng_below(rng, BASE_COUNT(piece))]);
}

static void random_stops_cut_where_the_whole_text_says(void **state)
{
    uint32_t stopped = 0;
    for (uint64_t seed = 1; seed <= 2000; seed++) {
        struct rng rng;
        char text[512], stop[4][64], *stops[4] = {stop[0], stop[1], stop[2], stop[3]};
        struct buf visible = {0}, wanted = {0};
        rng_init(&rng, seed);
        random_text(&rng, rng_below(&rng, 40), text);
        uint32_t count = (uint32_t)rng_below(&rng, 5);
        for (uint32_t k = 0; k < count; k++)
            random_text(&rng, 1 + rng_below(&rng, 4), stop[k]);
        struct token_list t = encode(text);
        bool expected = reference(&t, stops, count, &wanted), got = show(&t, stops, count, &visible);
        stopped += got;
        if (got != expected || visible.len != wanted.len ||
            (wanted.len && memcmp(visible.data, wanted.data, wanted.len) != 0))
            fail_msg("seed %llu: '%s' shows '%s', not '%s'", (unsigned long long)seed, text, visible.data,
                     wanted.data);
        buf_done(&visible);
        buf_done(&wanted);
        free(t.ids);
    }
    assert_in_range(stopped, 400, 1900);
}

static void a_torn_character_at_the_end_is_shown_as_a_replacement(void **state)
{
    struct token_list t = encode("x\xe2\x82\xac");
    struct buf visible = {0};
    assert_true(t.count > 2); /* the sign is more than one token of this vocabulary */
    t.count--;
    assert_false(show(&t, NULL, 0, &visible));
    assert_string_equal(visible.data, "x\xef\xbf\xbd");
    buf_done(&visible);
    free(t.ids);
}

static void ids_outside_the_vocabulary_show_nothing(void **state)
{
    struct buf visible = {0};
    int32_t ids[] = {-1, tokenizer_vocab(tokenizer), INT32_MAX};
    const struct token_list t = {.ids = ids, .count = 3};
    assert_false(show(&t, NULL, 0, &visible));
    assert_int_equal(visible.len, 0);
    buf_done(&visible);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_before_a_stop_string_is_shown_and_nothing_after),
        cmocka_unit_test(random_stops_cut_where_the_whole_text_says),
        cmocka_unit_test(a_torn_character_at_the_end_is_shown_as_a_replacement),
        cmocka_unit_test(ids_outside_the_vocabulary_show_nothing),
    };
    return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
