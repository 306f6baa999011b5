/* Training: learns, repeats itself to the byte, fits its size, uses wordings, says what is wrong.
 */
#include "support.h"
#include "router/head.h"
#include "router/train.h"

static void small_set_is_learnt(void **state)
{
    struct router_data d = support_data(400, 1), fresh = support_data(200, 2);
    struct buf bytes = {0};
    struct router_train_report r = {0};
    struct err e = {0};
    assert_int_equal(router_train(&d, NULL, NULL, NULL, &bytes, &r, &e), ERR_OK);
    assert_int_equal(r.labels, 4);
    assert_int_equal(r.rows, 360);
    assert_int_equal(r.head_bytes, bytes.len);
    assert_true(r.train_accuracy > 0.99 && r.val_accuracy > 0.97);
    assert_true(r.temperature > 0.0 && r.threshold >= 0.0 && r.threshold <= 0.5);
    struct router_head *h;
    struct router_eval_report eval;
    assert_int_equal(router_head_parse(bytes.data, bytes.len, &h, &e), ERR_OK);
    assert_int_equal(router_eval(h, &fresh, NULL, &eval, &e), ERR_OK);
    assert_int_equal(eval.n, 200);
    assert_true(eval.accuracy > 0.97 && eval.macro_f1 > 0.97);
    assert_true(isnan(eval.coverage_curve[20]) && eval.coverage_curve[0] > 0.97);
    router_eval_report_done(&eval);
    router_head_close(&h);
    buf_done(&bytes);
    router_data_done(&d);
    router_data_done(&fresh);
}

static void same_data_gives_same_bytes_on_any_number_of_threads(void **state)
{
    const unsigned threads[] = {1, 2, 3, 7, 0, 1};
    struct buf first = {0};
    for (size_t i = 0; i < BASE_COUNT(threads); i++) {
        struct buf again = support_train(&(struct router_train_options){.threads = threads[i]});
        if (i == 0) {
            first = again;
            continue;
        }
        assert_int_equal(again.len, first.len);
        assert_memory_equal(again.data, first.data, first.len);
        buf_done(&again);
    }
    struct buf other = support_train(&(struct router_train_options){.seed = 5});
    assert_false(other.len == first.len && memcmp(other.data, first.data, first.len) == 0);
    buf_done(&other);
    buf_done(&first);
}

static void head_fits_the_bytes_it_is_given(void **state)
{
    const size_t sizes[] = {4 * BASE_MIB, 64 * BASE_KIB, 8 * BASE_KIB};
    for (size_t i = 0; i < BASE_COUNT(sizes); i++) {
        struct buf head = support_train(&(struct router_train_options){.max_bytes = sizes[i]});
        assert_true(head.len <= sizes[i]);
        buf_done(&head);
    }
    struct buf head =
        support_train(&(struct router_train_options){.word_bits = 10, .char_bits = 12});
    assert_true(head.len < 64 * BASE_KIB);
    buf_done(&head);
}

static void validation_rows_calibrate_and_are_not_learnt(void **state)
{
    struct router_data d = support_data(400, 1), val = support_data(100, 2);
    support_add(&val, "who knows", "nobody", "");
    struct buf bytes = {0};
    struct router_train_report r = {0};
    struct err e = {0};
    assert_int_equal(router_train(&d, &val, NULL, NULL, &bytes, &r, &e), ERR_OK);
    assert_int_equal(r.rows, 400);
    assert_int_equal(r.labels, 4);
    assert_true(r.val_accuracy > 0.97 && r.ece < 0.2);
    buf_done(&bytes);
    router_data_done(&d);
    router_data_done(&val);
}

static double accuracy_on(struct router_data *train, const char *const *texts, size_t count,
                          const char *expert)
{
    struct buf bytes = {0};
    struct err e = {0};
    struct router_head *h;
    if (router_train(train, NULL, NULL, NULL, &bytes, NULL, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    assert_int_equal(router_head_parse(bytes.data, bytes.len, &h, &e), ERR_OK);
    size_t right = 0;
    for (size_t i = 0; i < count; i++) {
        struct router_decision d = support_decide(h, texts[i], strlen(texts[i]), NULL);
        right += strcmp(d.label, expert) == 0;
    }
    router_head_close(&h);
    buf_done(&bytes);
    return (double)right / (double)count;
}

static void wordings_teach_requests_that_no_row_has(void **state)
{
    const char *const texts[] = {"Arrange lexicographically: river butter",
                                 "Arrange lexicographically: copper island",
                                 "Lexicographic arrangement of violin forest"};
    struct router_data d = support_data(400, 1);
    double before = accuracy_on(&d, texts, 3, "sorter");
    support_add(&d, "Arrange lexicographically: {}", "sorter", AUGMENT_SOURCE_WORDING);
    support_add(&d, "Lexicographic arrangement of {}", "sorter", AUGMENT_SOURCE_WORDING);
    double after = accuracy_on(&d, texts, 3, "sorter");
    assert_true(before < 1.0);
    assert_true(after == 1.0);
    router_data_done(&d);
}

static void swapped_inputs_make_the_request_decide(void **state)
{
    struct router_data d = support_data(400, 1);
    const struct router_row *rows[400];
    uint32_t label[400];
    for (size_t i = 0; i < 400; i++) {
        rows[i] = &d.rows[i];
        label[i] = (uint32_t)(i % 4);
    }
    struct augment_options opt = augment_options_default();
    struct sample_list list, again;
    augment_rows(rows, label, 400, &opt, &list);
    augment_rows(rows, label, 400, &opt, &again);
    size_t swapped = 0;
    for (size_t i = 400; i < list.count; i++) {
        assert_int_equal(list.items[i].label, again.items[i].label);
        assert_string_equal(list.items[i].text, again.items[i].text);
        assert_true(list.items[i].len > 0 && list.items[i].label < 4);
        swapped += list.items[i].counted;
    }
    assert_int_equal(swapped, 16 * opt.swap_copies); /* 16 wordings were found */
    for (size_t i = 0; i < 400; i++)
        assert_true(list.items[i].weight == 1.0f && list.items[i].text == rows[i]->text);
    sample_list_done(&list);
    sample_list_done(&again);
    router_data_done(&d);
}

static void expect_error(const struct router_data *d, const struct router_train_options *opt,
                         enum err_code expected, const char *cause)
{
    struct buf bytes = {0};
    struct err e = {0};
    assert_int_equal(router_train(d, NULL, opt, NULL, &bytes, NULL, &e), expected);
    if (!strstr(e.msg, cause))
        fail_msg("\"%s\" does not say \"%s\"", e.msg, cause);
    assert_null(bytes.data);
}

static void what_cannot_be_trained_is_said(void **state)
{
    struct router_data none = {0}, d = {0};
    expect_error(&none, NULL, ERR_INVALID, "two experts");
    support_add(&d, "one thing", "a", "");
    support_add(&d, "another thing", "any", "");
    expect_error(&d, NULL, ERR_INVALID, "two experts");
    support_add(&d, "a third thing", "b", "");
    expect_error(&d, &(struct router_train_options){.word_bits = 40}, ERR_INVALID, "bits");
    expect_error(&d, &(struct router_train_options){.max_bytes = 100}, ERR_INVALID, "more bytes");
    d.rows[0].expert[0] = '\xff';
    expect_error(&d, NULL, ERR_INVALID, "row 1");
    router_data_done(&d);
}

static void three_rows_are_enough_for_a_head(void **state)
{
    struct router_data d = {0};
    support_add(&d, "translate this to klingon", "klingon", "");
    support_add(&d, "sort the following words", "sorter", "");
    support_add(&d, "", "sorter", "");
    struct buf bytes = {0};
    struct err e = {0};
    assert_int_equal(router_train(&d, NULL, NULL, NULL, &bytes, NULL, &e), ERR_OK);
    struct router_head *h;
    assert_int_equal(router_head_parse(bytes.data, bytes.len, &h, &e), ERR_OK);
    assert_int_equal(h->header.general_idx, -1);
    struct router_decision decision = support_decide(h, "", 0, NULL);
    assert_int_equal(decision.label_idx, -1);
    assert_string_equal(decision.label, "");
    router_head_close(&h);
    buf_done(&bytes);
    router_data_done(&d);
}

static void many_labels_fit(void **state)
{
    struct router_data d = {0};
    for (int i = 0; i < ROUTER_LABELS_MAX + 1; i++) {
        char text[64], expert[32];
        snprintf(expert, sizeof(expert), "expert-%d", i);
        snprintf(text, sizeof(text), "please do task number%c%c%c", 'a' + i % 26, 'a' + i / 26 % 26,
                 'a' + i / 676);
        support_add(&d, text, expert, "");
        support_add(&d, text, expert, "");
    }
    const struct router_train_options quick = {.iterations = 2};
    expect_error(&d, &quick, ERR_INVALID, "at most 1024");
    struct router_data fewer = {.rows = d.rows, .count = d.count - 2};
    struct buf bytes = {0};
    struct err e = {0};
    assert_int_equal(router_train(&fewer, NULL, &quick, NULL, &bytes, NULL, &e), ERR_OK);
    assert_true(bytes.len <= 4 * BASE_MIB);
    buf_done(&bytes);
    router_data_done(&d);
}

static bool cancel_after(void *ctx, const char *what, uint64_t done, uint64_t total)
{
    int *left = ctx;
    assert_non_null(what);
    assert_true(done <= total);
    return (*left)-- > 0;
}

static void progress_can_cancel(void **state)
{
    struct router_data d = support_data(100, 1);
    for (int calls = 0; calls < 4; calls++) {
        int left = calls;
        const struct progress progress = {cancel_after, &left};
        struct buf bytes = {0};
        struct err e = {0};
        assert_int_equal(router_train(&d, NULL, NULL, &progress, &bytes, NULL, &e), ERR_CANCELLED);
        assert_null(bytes.data);
    }
    router_data_done(&d);
}

static void evaluation_counts_what_it_should(void **state)
{
    struct router_head *h = support_head();
    struct router_data d = {0};
    struct err e = {0};
    struct router_eval_report r;
    assert_int_equal(router_eval(h, &d, NULL, &r, &e), ERR_INVALID);
    support_add(&d, "Translate to Klingon: apple river", "klingon", "");
    support_add(&d, "Sort these words: apple river", "klingon", "");      /* wrong expert */
    support_add(&d, "Tell me about winter castle", "sorter", "");         /* lost to general */
    support_add(&d, "Count the letters of winter castle", "general", ""); /* hijacked */
    support_add(&d, "Sort these words: apple", "unheard-of", "");
    support_add(&d, "\xff\xff", "any", "");
    support_add(&d,
                "Count the letters of apple\x1e"
                "same for river",
                "counter", "");
    assert_int_equal(router_eval(h, &d, NULL, &r, &e), ERR_OK);
    assert_int_equal(r.n, 6);
    assert_true(fabs(r.accuracy - 2.0 / 6.0) < 1e-9);
    assert_true(fabs(r.expert_to_general - 1.0 / 5.0) < 1e-9);
    assert_true(fabs(r.expert_to_other - 2.0 / 5.0) < 1e-9);
    assert_true(fabs(r.general_to_expert - 1.0) < 1e-9);
    size_t klingon = (size_t)support_label(h, "klingon"),
           sorter = (size_t)support_label(h, "sorter");
    assert_true(fabs(r.per_label[klingon] - 0.5) < 1e-9);
    assert_true(r.per_label[r.labels] == 0.0);
    assert_int_equal(r.confusion[klingon * r.labels + sorter], 1);
    assert_true(r.latency_us_p50 > 0.0 && r.latency_us_p99 >= r.latency_us_p50);
    router_eval_report_done(&r);
    router_data_done(&d);
    router_head_close(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_set_is_learnt),
        cmocka_unit_test(same_data_gives_same_bytes_on_any_number_of_threads),
        cmocka_unit_test(head_fits_the_bytes_it_is_given),
        cmocka_unit_test(validation_rows_calibrate_and_are_not_learnt),
        cmocka_unit_test(wordings_teach_requests_that_no_row_has),
        cmocka_unit_test(swapped_inputs_make_the_request_decide),
        cmocka_unit_test(what_cannot_be_trained_is_said),
        cmocka_unit_test(three_rows_are_enough_for_a_head),
        cmocka_unit_test(many_labels_fit),
        cmocka_unit_test(progress_can_cancel),
        cmocka_unit_test(evaluation_counts_what_it_should),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
