/* The encoder stage with an encoder that hashes words: trained to the same bytes, asked only where
 * the n-grams may not answer, left out when it fails or is another one; experts added by example.
 */
#include "support.h"
#include "router/augment.h"
#include "router/head.h"
#include "router/train.h"

#include <unistd.h>

enum { WIDTH = 64 };

struct fake {
    size_t calls, texts;
    bool broken;
};

/* A bag of words: each word pushes the vector its own way. */
static enum err_code fake_encode(void *ctx, const struct router_turn *texts, size_t count,
                                 float *ret, struct err *e)
{
    struct fake *f = ctx;
    f->calls++;
    f->texts += count;
    if (f->broken)
        return err_set(e, ERR_INTERNAL, "the encoder is broken");
    for (size_t i = 0; i < count; i++) {
        float *v = ret + i * WIDTH, ss = 0.0f;
        memset(v, 0, WIDTH * sizeof(*v));
        for (size_t at = 0; at < texts[i].len;) {
            size_t from = at;
            while (at < texts[i].len && texts[i].text[at] != ' ')
                at++;
            struct rng r;
            rng_init(&r, hash64_of(texts[i].text + from, at - from, 0));
            for (size_t k = 0; k < WIDTH; k++)
                v[k] += (float)rng_f64(&r) - 0.5f;
            at++;
        }
        for (size_t k = 0; k < WIDTH; k++)
            ss += v[k] * v[k];
        for (size_t k = 0; k < WIDTH; k++)
            v[k] /= ss > 0.0f ? sqrtf(ss) : 1.0f;
    }
    return ERR_OK;
}

static struct router_encoder view_of(struct fake *f, uint64_t id)
{
    return (struct router_encoder){.width = WIDTH, .id = id, .ctx = f, .encode = fake_encode};
}

static struct buf train_with_encoders(size_t encoders, const char *cache, size_t *ret_encoded)
{
    struct fake f[3] = {0};
    struct router_encoder views[3] = {view_of(&f[0], 9), view_of(&f[1], 9), view_of(&f[2], 9)};
    const struct router_train_options opt = {.encoders = views,
                                             .encoders_count = encoders,
                                             .threads = (unsigned)encoders,
                                             .cache_path = cache};
    struct router_data d = support_data(400, 1);
    support_add(&d, "{Please|Kindly} {sort|order} the words {}", "sorter", "wording");
    support_add(&d, "{Say|Whisper} {} {the Klingon way|like a Klingon}", "klingon", "wording");
    support_add(&d, "What {colour|size} is {}?", "general", "wording");
    support_add(&d, "{How|Why} is the {weather|sea} today?", "general", "wording");
    struct router_train_report r = {0};
    struct buf head = {0};
    struct err e = {0};
    if (router_train(&d, NULL, &opt, NULL, &head, &r, &e) != ERR_OK)
        fail_msg("training failed: %s", e.msg);
    if (ret_encoded)
        *ret_encoded = r.encoded;
    router_data_done(&d);
    return head;
}

static struct router_head *open_head(void)
{
    struct buf bytes = train_with_encoders(1, NULL, NULL);
    struct router_head *h = NULL;
    struct err e = {0};
    if (router_head_parse(bytes.data, bytes.len, &h, &e) != ERR_OK)
        fail_msg("head refused: %s", e.msg);
    buf_done(&bytes);
    return h;
}

static void same_bytes_with_any_number_of_encoders_and_with_a_cache(void **state)
{
    char cache[] = "/tmp/switchyard-vectors-XXXXXX";
    int fd = mkstemp(cache);
    assert_true(fd >= 0);
    close(fd);
    size_t encoded = 0;
    struct buf first = train_with_encoders(1, NULL, &encoded);
    assert_true(encoded > 400);
    for (size_t i = 0; i < 4; i++) {
        struct buf again = train_with_encoders(1 + i % 3, i < 1 ? NULL : cache, &encoded);
        assert_int_equal(again.len, first.len);
        assert_memory_equal(again.data, first.data, first.len);
        buf_done(&again);
    }
    assert_int_equal(encoded, 0); /* all were in the file */
    struct err e = {0};
    assert_int_equal(file_write_atomic(cache, "SWYVECS1 torn", 13, &e), ERR_OK);
    struct buf again = train_with_encoders(1, cache, &encoded);
    assert_true(encoded > 400);
    assert_memory_equal(again.data, first.data, first.len);
    buf_done(&again);
    buf_done(&first);
    unlink(cache);
}

static void unsure_prompts_ask_the_encoder_and_sure_ones_do_not(void **state)
{
    struct router_head *h = open_head();
    struct fake f = {0};
    struct router_encoder view = view_of(&f, 9);
    struct router_options opt = {.threshold = 0.0, .generalist_idx = -1, .encoder = &view};
    int klingon = support_label(h, "klingon");
    const char *text = "Translate to Klingon: apple river";

    h->entitled[klingon] = 0.5f;
    struct router_decision d = support_decide(h, text, strlen(text), &opt);
    assert_string_equal(d.label, "klingon");
    assert_int_equal(d.reason, ROUTER_REASON_NGRAM);
    assert_int_equal(d.stage, ROUTER_STAGE_NGRAM);
    assert_int_equal(f.calls, 0);

    h->entitled[klingon] = 2.0f;
    d = support_decide(h, text, strlen(text), &opt);
    assert_string_equal(d.label, "klingon");
    assert_int_equal(d.reason, ROUTER_REASON_ENCODER);
    assert_int_equal(d.stage, ROUTER_STAGE_ENCODER);
    assert_int_equal(f.texts, 1);

    h->entitled[klingon] = 0.0f;
    opt.encoder_always = true;
    d = support_decide(h, text, strlen(text), &opt);
    assert_int_equal(d.stage, ROUTER_STAGE_ENCODER);
    router_head_close(&h);
}

/* Whatever is wrong with the encoder, there is a decision, and it is that of the n-grams alone. */
static void a_broken_or_foreign_encoder_leaves_the_ngrams(void **state)
{
    struct router_head *h = open_head();
    struct fake f = {.broken = true};
    struct router_encoder broken = view_of(&f, 9), foreign = view_of(&f, 10),
                          narrow = view_of(&f, 9);
    narrow.width = WIDTH / 2;
    const struct router_encoder *encoders[] = {&broken, &foreign, &narrow, NULL};
    const char *text = "Sort these words: violin copper";
    for (size_t i = 0; i < BASE_COUNT(encoders); i++) {
        struct router_options opt = {
            .threshold = 0.0, .generalist_idx = -1, .encoder = encoders[i], .encoder_always = true};
        struct router_decision d = support_decide(h, text, strlen(text), &opt);
        assert_string_equal(d.label, "sorter");
        assert_int_equal(d.stage, ROUTER_STAGE_NGRAM);
    }
    assert_int_equal(f.calls, 1); /* only the first was asked at all */
    router_head_close(&h);
}

/* Turns of one conversation go through the encoder in one call. */
static void turns_are_encoded_in_one_batch(void **state)
{
    struct router_head *h = open_head();
    struct fake f = {0};
    struct router_encoder view = view_of(&f, 9);
    struct router_options opt = {
        .threshold = 0.0, .generalist_idx = -1, .encoder = &view, .encoder_always = true};
    struct router_scratch *s = router_scratch_open(h);
    struct router_turn turns[6];
    for (size_t i = 0; i < BASE_COUNT(turns); i++)
        turns[i] = (struct router_turn){"Count the letters of paper", 26};
    turns[4] = (struct router_turn){"??? !", 5}; /* no word: not read */
    struct router_decision d;
    router_decide(h, s, turns, BASE_COUNT(turns), &opt, &d, NULL);
    assert_string_equal(d.label, "counter");
    assert_int_equal(f.calls, 1);
    assert_int_equal(f.texts, 3);
    router_scratch_close(&s);
    router_head_close(&h);
}

static void an_expert_added_by_example_gets_its_prompts_and_no_others(void **state)
{
    static const char *const examples[] = {
        "Compute the orbit of moon seven", "Compute the orbit of comet nine",
        "Please compute orbit data for mars", "orbit of the comet halley please",
        "Compute orbit parameters of venus"};
    static const char *const own[] = {"Compute the orbit of comet four",
                                      "Compute orbit parameters of mars please",
                                      "orbit of moon nine please"};
    struct router_head *h = open_head();
    struct fake f = {0};
    struct router_encoder view = view_of(&f, 9);
    struct router_turn turns[5];
    struct err e = {0};
    int idx = -1;
    for (size_t i = 0; i < 5; i++)
        turns[i] = (struct router_turn){examples[i], strlen(examples[i])};
    struct router_prototypes *p = router_prototypes_open(h);
    assert_int_equal(router_prototypes_add(p, "orbits", NULL, turns, 5, &idx, &e), ERR_UNSUPPORTED);
    assert_int_equal(router_prototypes_add(p, "orbits", &view, turns, 0, &idx, &e), ERR_INVALID);
    assert_int_equal(router_prototypes_add(p, "orbits", &view, turns, 5, &idx, &e), ERR_OK);
    assert_int_equal(router_prototypes_count(p), 1);
    struct router_options opt = {
        .threshold = 0.0, .generalist_idx = -1, .encoder = &view, .prototypes = p};
    for (size_t i = 0; i < BASE_COUNT(own); i++) {
        struct router_decision d = support_decide(h, own[i], strlen(own[i]), &opt);
        assert_int_equal(d.prototype_idx, idx);
        assert_string_equal(d.label, "orbits");
        assert_int_equal(d.reason, ROUTER_REASON_PROTOTYPE);
        assert_true(d.confidence > 0.5);
    }
    struct router_data others = support_data(80, 3);
    size_t lost = 0;
    for (size_t i = 0; i < others.count; i++) {
        const char *text = others.rows[i].text;
        lost += support_decide(h, text, strlen(text), &opt).prototype_idx >= 0;
    }
    assert_true(lost <= 1);
    router_data_done(&others);
    router_prototypes_close(&p);
    router_head_close(&h);
}

/* A pattern becomes only what it says, and everything that it says. */
static void patterns_draw_their_alternatives(void **state)
{
    static const char *const want[] = {"Go home now",   "Go home soon", "Run home now",
                                       "Run home soon", "Go away",      "Run away"};
    bool seen[BASE_COUNT(want)] = {false};
    struct router_row row = {.text = (char *)"{Go|Run} {home {now|soon}|away}",
                             .expert = (char *)"a",
                             .source = (char *)"wording",
                             .kind = (char *)""};
    struct router_row brace = row;
    brace.text = (char *)"{not a group} and } or {";
    const struct router_row *rows[] = {&row, &brace};
    const uint32_t labels[] = {0, 1};
    struct augment_options opt = augment_options_default();
    struct sample_list list;
    opt.drop_copies = 0;
    assert_true(augment_is_wording(&row));
    assert_false(augment_is_wording(&brace));
    augment_rows(rows, labels, 2, &opt, &list);
    for (size_t i = 0; i < list.count; i++) {
        bool known = list.items[i].label == 1 &&
                     strncmp(list.items[i].text, brace.text, list.items[i].len) == 0;
        for (size_t k = 0; k < BASE_COUNT(want); k++)
            if (strlen(want[k]) == list.items[i].len &&
                memcmp(want[k], list.items[i].text, list.items[i].len) == 0)
                known = seen[k] = true;
        if (!known)
            fail_msg("drew '%.*s'", (int)list.items[i].len, list.items[i].text);
    }
    for (size_t k = 0; k < BASE_COUNT(want); k++)
        assert_true(seen[k]);
    sample_list_done(&list);
}

/* Every byte of the stage's header fields and numbers is checked or harmless. */
static void a_damaged_stage_is_refused_or_harmless(void **state)
{
    struct buf bytes = train_with_encoders(1, NULL, NULL);
    struct head_header good;
    memcpy(&good, bytes.data, sizeof(good));
    struct rng r;
    rng_init(&r, 11);
    size_t summed = offsetof(struct head_header, checksum) + sizeof(uint64_t);
    for (int round = 0; round < 400; round++) {
        struct router_head *h = NULL;
        struct err e = {0};
        size_t at = round < 200 ? summed + rng_below(&r, sizeof(good) - summed)
                                : summed + rng_below(&r, bytes.len - summed);
        char was = bytes.data[at];
        bytes.data[at] = (char)rng_u64(&r);
        uint64_t sum = hash64_of(bytes.data + summed, bytes.len - summed, HEAD_SEED);
        memcpy(bytes.data + offsetof(struct head_header, checksum), &sum, sizeof(sum));
        if (router_head_parse(bytes.data, bytes.len, &h, &e) == ERR_OK) {
            struct fake f = {0};
            struct router_encoder view = view_of(&f, router_head_encoder_id(h));
            view.width = router_head_width(h);
            struct router_options opt = {.threshold = (double)NAN,
                                         .generalist_idx = -1,
                                         .encoder = view.width == WIDTH ? &view : NULL,
                                         .encoder_always = true};
            support_decide(h, "Sort these words", 16, &opt);
            router_head_close(&h);
        }
        bytes.data[at] = was;
    }
    buf_done(&bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bytes_with_any_number_of_encoders_and_with_a_cache),
        cmocka_unit_test(unsure_prompts_ask_the_encoder_and_sure_ones_do_not),
        cmocka_unit_test(a_broken_or_foreign_encoder_leaves_the_ngrams),
        cmocka_unit_test(turns_are_encoded_in_one_batch),
        cmocka_unit_test(an_expert_added_by_example_gets_its_prompts_and_no_others),
        cmocka_unit_test(patterns_draw_their_alternatives),
        cmocka_unit_test(a_damaged_stage_is_refused_or_harmless),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
