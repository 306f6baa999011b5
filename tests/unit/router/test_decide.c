/* Decisions: the right expert, abstention, masks, conversations, explanations, any bytes at all. */
#include "support.h"
#include "router/decide.h"

static struct router_head *head;

static int setup_group(void **state)
{
    (void)state;
    head = support_head();
    return 0;
}

static int teardown_group(void **state)
{
    (void)state;
    router_head_close(&head);
    return 0;
}

static struct router_decision decide(const char *text, const struct router_options *opt)
{
    return support_decide(head, text, strlen(text), opt);
}

static const struct router_options own = {.threshold = (double)NAN, .generalist_idx = -1};

static void trained_requests_go_to_their_expert(void **state)
{
    struct router_decision d = decide("Translate to Klingon: the doctor's violin", NULL);
    assert_string_equal(d.label, "klingon");
    assert_int_equal(d.reason, ROUTER_REASON_NGRAM);
    assert_int_equal(d.label_idx, support_label(head, "klingon"));
    assert_int_equal(d.best_idx, d.label_idx);
    assert_true(d.confidence > 0.8 && d.confidence <= 1.0);
    d = decide("Tell me about castle winter", NULL);
    assert_string_equal(d.label, "general");
    assert_int_equal(d.reason, ROUTER_REASON_GENERAL);
}

static void scores_are_probabilities(void **state)
{
    struct router_scratch *s = router_scratch_open(head);
    struct router_turn turn = {"klingon: copper", 15};
    struct router_decision d;
    float scores[4] = {0}, sum = 0.0f;
    router_decide(head, s, &turn, 1, &own, &d, scores);
    for (size_t i = 0; i < 4; i++) {
        assert_true(scores[i] >= 0.0f);
        sum += scores[i];
    }
    assert_true(fabsf(sum - 1.0f) < 1e-5f);
    assert_true((double)scores[d.best_idx] == d.confidence);
    router_scratch_close(&s);
    assert_null(s);
}

static void below_the_threshold_it_abstains(void **state)
{
    struct router_options sure = own;
    sure.threshold = 1.1;
    struct router_decision d = decide("Translate to Klingon: apple", &sure);
    assert_int_equal(d.reason, ROUTER_REASON_ABSTAIN);
    assert_string_equal(d.label, "general");
    assert_int_equal(d.best_idx, support_label(head, "klingon"));
    sure.generalist_idx = support_label(head, "sorter");
    d = decide("Translate to Klingon: apple", &sure);
    assert_string_equal(d.label, "sorter");
    sure.threshold = 0.0;
    d = decide("Sort these words: apple", &sure);
    assert_int_equal(d.reason, ROUTER_REASON_GENERAL);
}

static void missing_expert_goes_to_the_generalist_not_to_the_next_best(void **state)
{
    bool allowed[4] = {true, true, true, true};
    allowed[support_label(head, "klingon")] = false;
    struct router_options opt = {.threshold = 0.3, .label_allowed = allowed, .generalist_idx = -1};
    struct router_decision d = decide("Translate to Klingon: apple river", &opt);
    assert_string_equal(d.label, "general");
    assert_true(d.confidence < 0.3);
    allowed[support_label(head, "general")] = allowed[support_label(head, "counter")] = false;
    d = decide("Translate to Klingon: apple river", &opt);
    assert_string_equal(d.label, "sorter");
    assert_int_equal(d.reason, ROUTER_REASON_ONLY);
    allowed[support_label(head, "sorter")] = false;
    d = decide("Translate to Klingon: apple river", &opt);
    assert_string_equal(d.label, "general");
    assert_int_equal(d.reason, ROUTER_REASON_ABSTAIN);
    assert_int_equal(d.best_idx, -1);
}

static void nothing_to_read_goes_to_the_generalist(void **state)
{
    const char *const texts[] = {"", "   \n\t", "?!...", "\xff\xfe\x80", "\xe2\x80\x8b"};
    for (size_t i = 0; i < BASE_COUNT(texts); i++) {
        struct router_decision d = decide(texts[i], NULL);
        assert_int_equal(d.reason, ROUTER_REASON_EMPTY);
        assert_string_equal(d.label, "general");
        assert_int_equal(d.best_idx, -1);
    }
    struct router_scratch *s = router_scratch_open(head);
    struct router_decision d;
    float scores[4];
    router_decide(head, s, NULL, 0, NULL, &d, scores);
    assert_int_equal(d.reason, ROUTER_REASON_EMPTY);
    router_scratch_close(&s);
    router_decide(NULL, NULL, NULL, 0, NULL, &d, NULL);
    assert_int_equal(d.reason, ROUTER_REASON_NO_HEAD);
    assert_int_equal(d.label_idx, -1);
}

static void any_bytes_give_a_decision(void **state)
{
    const uint64_t seed = 99;
    struct rng rng;
    rng_init(&rng, seed);
    for (int round = 0; round < 200; round++) {
        size_t len = rng_below(&rng, round % 20 == 0 ? 120000 : 900);
        char *bytes = mem_array(len + 1, 1);
        for (size_t i = 0; i < len; i++)
            bytes[i] = (char)rng_u64(&rng);
        struct router_decision d = support_decide(head, bytes, len, NULL);
        if (!(d.confidence >= 0.0 && d.confidence <= 1.0))
            fail_msg("seed %llu round %d: confidence %g", (unsigned long long)seed, round,
                     d.confidence);
        free(bytes);
    }
}

static void request_at_the_end_of_a_long_text_is_seen(void **state)
{
    struct buf b = {0};
    for (int i = 0; i < 12000; i++)
        buf_puts(&b, "lorem ipsum ");
    buf_puts(&b, "\n\nTranslate to Klingon, in Klingon please, how do Klingons say it?");
    struct router_decision d = support_decide(head, b.data, b.len, NULL);
    assert_int_equal(d.best_idx, support_label(head, "klingon"));
    buf_done(&b);
}

static void decide_turns(const char *const *texts, size_t count, const char *expected)
{
    struct router_turn turns[16];
    for (size_t i = 0; i < count; i++)
        turns[i] = (struct router_turn){texts[i], strlen(texts[i])};
    struct router_scratch *s = router_scratch_open(head);
    struct router_decision d;
    router_decide(head, s, turns, count, NULL, &d, NULL);
    router_scratch_close(&s);
    if (strcmp(d.label, expected) != 0)
        fail_msg("\"%s\" went to %s, not %s", texts[count - 1], d.label, expected);
}

static void followup_keeps_the_expert_and_a_new_request_moves(void **state)
{
    const char *const keep[] = {"Translate to Klingon: apple", "and this one: violin garden"};
    const char *const move[] = {"Translate to Klingon: apple", "Count the letters of violin"};
    const char *const back[] = {"Translate to Klingon: apple", "Count the letters of violin",
                                "same for garden", ""};
    const char *const chat[] = {"Translate to Klingon: apple",
                                "What do you think of monkey castle?"};
    decide_turns(keep, 2, "klingon");
    decide_turns(move, 2, "counter");
    decide_turns(back, 4, "counter");
    decide_turns(chat, 2, "general");
}

static void references_back_are_recognised(void **state)
{
    const char *const yes[] = {"and this one: x",      "Same for \"x\"", "  NEXT: x",
                               "what about lined?",    "Another: x",     "now x",
                               "Here's another one: x"};
    const char *const no[] = {"", "andromeda", "nextdoor", "Translate this", "sameness", "nowhere"};
    for (size_t i = 0; i < BASE_COUNT(yes); i++)
        if (!followup_refers_back(yes[i], strlen(yes[i])))
            fail_msg("\"%s\" was not recognised", yes[i]);
    for (size_t i = 0; i < BASE_COUNT(no); i++)
        if (followup_refers_back(no[i], strlen(no[i])))
            fail_msg("\"%s\" was taken for a reference back", no[i]);
}

static void explanation_names_what_mattered(void **state)
{
    const char *text = "Translate to Klingon: apple";
    struct router_turn turn = {text, strlen(text)};
    struct router_scratch *s = router_scratch_open(head);
    struct router_evidence list[8];
    int klingon = support_label(head, "klingon");
    size_t count = router_explain(head, s, &turn, 1, klingon, list, 8);
    assert_int_equal(count, 8);
    bool named = false;
    for (size_t i = 0; i < count; i++) {
        assert_true(list[i].weight > 0.0);
        assert_true(i == 0 || list[i].weight <= list[i - 1].weight);
        named |= strstr(list[i].ngram, "ling") != NULL;
    }
    assert_true(named);
    assert_int_equal(router_explain(head, s, &turn, 1, klingon, list, 0), 0);
    assert_int_equal(router_explain(head, s, &turn, 1, 99, list, 8), 0);
    assert_int_equal(router_explain(head, s, NULL, 0, klingon, list, 8), 0);
    router_scratch_close(&s);
}

static void reasons_have_names(void **state)
{
    assert_string_equal(router_reason_name(ROUTER_REASON_NGRAM), "ngram");
    assert_string_equal(router_reason_name(ROUTER_REASON_NO_HEAD), "no_head");
    assert_string_equal(router_reason_name((enum router_reason)77), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(trained_requests_go_to_their_expert),
        cmocka_unit_test(scores_are_probabilities),
        cmocka_unit_test(below_the_threshold_it_abstains),
        cmocka_unit_test(missing_expert_goes_to_the_generalist_not_to_the_next_best),
        cmocka_unit_test(nothing_to_read_goes_to_the_generalist),
        cmocka_unit_test(any_bytes_give_a_decision),
        cmocka_unit_test(request_at_the_end_of_a_long_text_is_seen),
        cmocka_unit_test(followup_keeps_the_expert_and_a_new_request_moves),
        cmocka_unit_test(references_back_are_recognised),
        cmocka_unit_test(explanation_names_what_mattered),
        cmocka_unit_test(reasons_have_names),
    };
    return cmocka_run_group_tests(tests, setup_group, teardown_group);
}
