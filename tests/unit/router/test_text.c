/* Vectors: the same for the same text in any spelling of its letters, bounded, safe for any bytes.
 */
#include "support.h"
#include "router/text.h"

static struct text_scratch *open_text(void **state)
{
    struct text_geometry g = text_geometry_default();
    *state = text_scratch_open(&g);
    return *state;
}

static int setup(void **state)
{
    return open_text(state) ? 0 : -1;
}

static int teardown(void **state)
{
    struct text_scratch *s = *state;
    text_scratch_close(&s);
    return 0;
}

static struct text_feature *vector_copy(struct text_scratch *s, const char *text, size_t *ret_count)
{
    const struct text_feature *f = text_vector(s, text, strlen(text), ret_count);
    struct text_feature *copy = mem_array(*ret_count + 1, sizeof(*copy));
    memcpy(copy, f, *ret_count * sizeof(*copy));
    return copy;
}

static bool same_vector(struct text_scratch *s, const char *a, const char *b)
{
    size_t count_a, count_b;
    struct text_feature *copy = vector_copy(s, a, &count_a);
    const struct text_feature *other = text_vector(s, b, strlen(b), &count_b);
    bool same = count_a == count_b && memcmp(copy, other, count_a * sizeof(*copy)) == 0;
    free(copy);
    return same;
}

static void same_text_gives_same_features_in_any_scratch(void **state)
{
    const char *text = "Translate to French: the quick brown fox, 2 cups of it";
    struct text_geometry g = text_geometry_default();
    struct text_scratch *other = text_scratch_open(&g);
    size_t count_a, count_b;
    struct text_feature *a = vector_copy(*state, text, &count_a);
    text_vector(other, "something else first", 20, &count_b);
    const struct text_feature *b = text_vector(other, text, strlen(text), &count_b);
    assert_int_equal(count_a, count_b);
    assert_memory_equal(a, b, count_a * sizeof(*a));
    free(a);
    text_scratch_close(&other);
}

static void vector_has_length_one_and_known_indices(void **state)
{
    struct text_geometry g = text_geometry_default();
    size_t count;
    const struct text_feature *f = text_vector(*state, "a bit of text", 13, &count);
    double norm = 0.0;
    for (size_t i = 0; i < count; i++) {
        assert_true(f[i].idx < text_space(&g));
        assert_true(text_value(*state, f[i].idx) == f[i].value);
        norm += (double)f[i].value * (double)f[i].value;
        for (size_t j = 0; j < i; j++)
            assert_int_not_equal(f[i].idx, f[j].idx);
    }
    assert_true(fabs(norm - 1.0) < 1e-5);
}

static void case_width_and_typography_fold_away(void **state)
{
    assert_true(same_vector(*state, "Translate THIS", "translate this"));
    assert_true(same_vector(*state, "ＦＵＬＬ width", "full width"));
    assert_true(same_vector(*state, "ﬁnd the oﬃce", "find the office"));
    assert_true(same_vector(*state, "ÉTÉ ÄHNLICH", "été ähnlich"));
    assert_true(same_vector(*state, "don’t “quote” – me", "don't \"quote\" - me"));
    assert_true(same_vector(*state, "take 2 cups", "take 7 cups"));
    assert_true(same_vector(*state, "two   words\n", " two words"));
    assert_false(same_vector(*state, "translate this", "translate that"));
    assert_false(same_vector(*state, "été", "ete"));
}

static void words_and_signs_are_told_apart(void **state)
{
    size_t count;
    text_vector(*state, "?! ... ()", 9, &count);
    assert_true(count > 0);
    assert_int_equal(text_word_count(*state), 0);
    text_vector(*state, "don't stop", 10, &count);
    assert_int_equal(text_word_count(*state), 2);
    text_vector(*state, "'quoted' word", 13, &count);
    assert_int_equal(text_word_count(*state), 2);
    text_vector(*state, "", 0, &count);
    assert_int_equal(count, 0);
}

static void random_bytes_are_safe_and_bounded(void **state)
{
    const uint64_t seed = 20240611;
    struct rng rng;
    rng_init(&rng, seed);
    for (int round = 0; round < 400; round++) {
        size_t len = rng_below(&rng, 6000), count;
        char *bytes = mem_array(len + 1, 1);
        for (size_t i = 0; i < len; i++)
            bytes[i] = (char)(round % 2 ? rng_u64(&rng) : 0xC0 + rng_below(&rng, 64));
        const struct text_feature *f = text_vector(*state, bytes, len, &count);
        for (size_t i = 0; i < count; i++)
            if (!isfinite(f[i].value))
                fail_msg("seed %llu round %d: value %zu is not finite", (unsigned long long)seed,
                         round, i);
        free(bytes);
    }
}

/* U+FDFA folds into 18 letters: the worst that decomposition does to a text's size. */
static void expanding_letters_do_not_overflow(void **state)
{
    struct buf b = {0};
    for (int i = 0; i < 2000; i++)
        buf_puts(&b, i % 3 ? "\xEF\xB7\xBA" : " \xEF\xB7\xBA");
    size_t count;
    text_vector(*state, b.data, b.len, &count);
    assert_true(count > 0);
    buf_done(&b);
}

static void long_text_is_read_at_both_ends_only(void **state)
{
    struct buf a = {0}, b = {0};
    buf_puts(&a, "begin here ");
    buf_puts(&b, "begin here ");
    for (int i = 0; i < 20000; i++) {
        buf_puts(&a, i > 1000 && i < 19000 ? "alpha " : "same ");
        buf_puts(&b, i > 1000 && i < 19000 ? "omega " : "same ");
    }
    buf_puts(&a, "translate this into french");
    buf_puts(&b, "translate this into french");
    assert_true(same_vector(*state, a.data, b.data));
    b.data[b.len - 1] = 'k';
    assert_false(same_vector(*state, a.data, b.data));
    b.data[b.len - 1] = 'h';
    b.data[0] = 'p';
    assert_false(same_vector(*state, a.data, b.data));
    buf_done(&a);
    buf_done(&b);
}

struct seen {
    size_t count;
    bool word, bigram, chars, border;
};

static void note_ngram(void *ctx, uint32_t idx, const char *ngram, size_t len)
{
    struct seen *seen = ctx;
    seen->count++;
    seen->word |= len == 5 && memcmp(ngram, "apple", 5) == 0;
    seen->bigram |= len == 9 && memcmp(ngram, "apple pie", 9) == 0;
    seen->chars |= len == 4 && memcmp(ngram, " pie", 4) == 0;
    seen->border |= len == 5 && memcmp(ngram, "pie $", 5) == 0;
    assert_true(utf8_valid(ngram, len));
    (void)idx;
}

static void ngrams_can_be_named(void **state)
{
    struct seen seen = {0};
    text_each_ngram(*state, "Apple pie", 9, note_ngram, &seen);
    assert_true(seen.word && seen.bigram && seen.chars && seen.border);
}

static void geometry_out_of_range_is_refused(void **state)
{
    struct text_geometry g = text_geometry_default();
    assert_true(text_geometry_valid(&g));
    g.word_bits = TEXT_BITS_MAX + 1;
    assert_false(text_geometry_valid(&g));
    g = text_geometry_default();
    g.head_bytes = 1 << 30;
    assert_false(text_geometry_valid(&g));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(same_text_gives_same_features_in_any_scratch, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(vector_has_length_one_and_known_indices, setup, teardown),
        cmocka_unit_test_setup_teardown(case_width_and_typography_fold_away, setup, teardown),
        cmocka_unit_test_setup_teardown(words_and_signs_are_told_apart, setup, teardown),
        cmocka_unit_test_setup_teardown(random_bytes_are_safe_and_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(expanding_letters_do_not_overflow, setup, teardown),
        cmocka_unit_test_setup_teardown(long_text_is_read_at_both_ends_only, setup, teardown),
        cmocka_unit_test_setup_teardown(ngrams_can_be_named, setup, teardown),
        cmocka_unit_test(geometry_out_of_range_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
