/* UTF-8 against an oracle: the set of valid strings is what encoding every scalar value yields. */
#include "unit.h"

/* Encode by the definition's arithmetic, independent of the code under test. */
static unsigned oracle_encode(uint32_t cp, unsigned char out[4])
{
    if (cp <= 0x7f) {
        out[0] = (unsigned char)cp;
        return 1;
    }
    if (cp <= 0x7ff) {
        out[0] = (unsigned char)(192 + cp / 64);
        out[1] = (unsigned char)(128 + cp % 64);
        return 2;
    }
    if (cp <= 0xffff) {
        out[0] = (unsigned char)(224 + cp / 4096);
        out[1] = (unsigned char)(128 + cp / 64 % 64);
        out[2] = (unsigned char)(128 + cp % 64);
        return 3;
    }
    out[0] = (unsigned char)(240 + cp / 262144);
    out[1] = (unsigned char)(128 + cp / 4096 % 64);
    out[2] = (unsigned char)(128 + cp / 64 % 64);
    out[3] = (unsigned char)(128 + cp % 64);
    return 4;
}

/* Bit sets of every valid sequence and of every proper prefix of one, by length. */
static unsigned char *valid[4], *prefix[4];

static bool has(const unsigned char *set, uint32_t key)
{
    return set[key / 8] >> (key % 8) & 1;
}

static void put(unsigned char *set, uint32_t key)
{
    set[key / 8] = (unsigned char)(set[key / 8] | 1u << (key % 8));
}

/* Four-byte keys would need 512 MiB; the lead byte of a valid one is f0..f4, so 3 bits suffice. */
static bool key_of(const unsigned char *s, unsigned n, uint32_t *ret)
{
    uint32_t key = s[0];
    if (n == 4) {
        if (s[0] < 0xf0 || s[0] > 0xf7)
            return false;
        key -= 0xf0;
    }
    for (unsigned i = 1; i < n; i++)
        key = key << 8 | s[i];
    *ret = key;
    return true;
}

static int setup(void **state)
{
    const size_t bits[4] = {1u << 8, 1u << 16, 1u << 24, 1u << 27};
    for (size_t i = 0; i < 4; i++) {
        valid[i] = mem_alloc(bits[i] / 8);
        prefix[i] = mem_alloc(bits[i] / 8);
    }
    for (uint32_t cp = 0; cp <= 0x10ffff; cp++) {
        if (cp >= 0xd800 && cp <= 0xdfff)
            continue;
        unsigned char s[4];
        unsigned n = oracle_encode(cp, s);
        uint32_t key;
        for (unsigned k = 1; k <= n; k++) {
            if (key_of(s, k, &key))
                put(k == n ? valid[k - 1] : prefix[k - 1], key);
        }
    }
    return 0;
}

static int teardown(void **state)
{
    for (size_t i = 0; i < 4; i++) {
        free(valid[i]);
        free(prefix[i]);
    }
    return 0;
}

static unsigned oracle_decode(const unsigned char *s, size_t len)
{
    uint32_t key;
    for (unsigned n = 1; n <= 4 && n <= len; n++) {
        if (key_of(s, n, &key) && has(valid[n - 1], key))
            return n;
    }
    return 0;
}

static void every_scalar_value_round_trips(void **state)
{
    for (uint32_t cp = 0; cp <= 0x10ffff; cp++) {
        if (cp >= 0xd800 && cp <= 0xdfff)
            continue;
        unsigned char want[4];
        char got[4];
        unsigned n = oracle_encode(cp, want);
        uint32_t back = 0;
        if (utf8_encode(cp, got) != n || memcmp(got, want, n) != 0 ||
            utf8_decode(got, n, &back) != n || back != cp)
            fail_msg("U+%04X", cp);
    }
}

static void every_sequence_up_to_three_bytes_is_judged_as_the_oracle_does(void **state)
{
    for (uint32_t bytes = 0; bytes < 1u << 24; bytes++) {
        const unsigned char s[3] = {(unsigned char)(bytes >> 16), (unsigned char)(bytes >> 8),
                                    (unsigned char)bytes};
        uint32_t cp;
        if (utf8_decode((const char *)s, 3, &cp) != oracle_decode(s, 3))
            fail_msg("bytes %06x", bytes);
    }
}

static void four_byte_sequences_are_judged_as_the_oracle_does(void **state)
{
    /* All leads, all second bytes; the edges of the third and fourth. */
    const unsigned char edges[] = {0x00, 0x41, 0x7f, 0x80, 0x9f, 0xa0, 0xbf, 0xc0, 0xe0, 0xff};
    for (uint32_t lead = 0; lead < 1u << 16; lead++) {
        for (size_t i = 0; i < BASE_COUNT(edges) * BASE_COUNT(edges); i++) {
            const unsigned char s[4] = {(unsigned char)(lead >> 8), (unsigned char)lead,
                                        edges[i / BASE_COUNT(edges)], edges[i % BASE_COUNT(edges)]};
            uint32_t cp;
            for (size_t len = 0; len <= 4; len++) {
                if (utf8_decode((const char *)s, len, &cp) != oracle_decode(s, len))
                    fail_msg("bytes %02x%02x%02x%02x len %zu", s[0], s[1], s[2], s[3], len);
            }
        }
    }
}

/* Random text that is mostly valid, sometimes broken. */
static size_t random_text(struct rng *r, unsigned char *s, size_t cap)
{
    size_t len = 0, want = rng_below(r, cap - 4);
    while (len < want) {
        uint32_t cp = (uint32_t)(rng_u64(r) & 0x1fffff) >> rng_below(r, 21);
        if (cp > 0x10ffff || (cp >= 0xd800 && cp <= 0xdfff))
            continue;
        len += oracle_encode(cp, s + len);
    }
    if (len > 0 && rng_below(r, 2) == 0)
        s[rng_below(r, len)] = (unsigned char)rng_u64(r);
    return len > 0 ? len - rng_below(r, BASE_MIN(len, (size_t)4)) : 0;
}

static void strings_are_valid_as_the_oracle_says(void **state)
{
    struct rng r;
    rng_init(&r, unit_seed());
    size_t count_valid = 0;
    for (int i = 0; i < 200000; i++) {
        unsigned char s[40];
        size_t len = random_text(&r, s, sizeof(s)), at = 0;
        unsigned n = 1;
        while (at < len && (n = oracle_decode(s + at, len - at)) > 0)
            at += n;
        bool want = at == len;
        count_valid += want;
        assert_int_equal(utf8_valid((const char *)s, len), want);
    }
    assert_true(count_valid > 20000 && count_valid < 180000); /* both answers were tested */
}

static void complete_prefix_cuts_only_a_character_that_has_begun(void **state)
{
    struct rng r;
    rng_init(&r, unit_seed());
    size_t cuts = 0;
    for (int i = 0; i < 200000; i++) {
        unsigned char s[40];
        size_t len = random_text(&r, s, sizeof(s)), want = len;
        /* The longest tail that is a proper prefix of some character. */
        for (unsigned n = 1; n <= 3 && n <= len; n++) {
            uint32_t key;
            if (key_of(s + len - n, n, &key) && has(prefix[n - 1], key))
                want = len - n;
        }
        cuts += want != len;
        assert_int_equal(utf8_complete_prefix((const char *)s, len), want);
    }
    assert_true(cuts > 10000);
}

static void a_text_streamed_bytewise_comes_out_whole(void **state)
{
    const char *text = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z";
    size_t sent = 0;
    for (size_t have = 1; have <= strlen(text); have++) {
        size_t upto = utf8_complete_prefix(text, have);
        assert_true(upto >= sent);
        assert_true(utf8_valid(text + sent, upto - sent));
        sent = upto;
    }
    assert_int_equal(sent, strlen(text));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_scalar_value_round_trips),
        cmocka_unit_test(every_sequence_up_to_three_bytes_is_judged_as_the_oracle_does),
        cmocka_unit_test(four_byte_sequences_are_judged_as_the_oracle_does),
        cmocka_unit_test(strings_are_valid_as_the_oracle_says),
        cmocka_unit_test(complete_prefix_cuts_only_a_character_that_has_begun),
        cmocka_unit_test(a_text_streamed_bytewise_comes_out_whole),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
