/* The price of a switch and the rules before it. */
#include "support.h"
#include "router/router.h"

static struct router_policy *policy(const char *expr, double lambda, double margin)
{
    struct router_policy *p = NULL;
    struct err e = {0};
    const struct router_policy_options opt = {.expr = expr, .lambda = lambda, .margin = margin};
    if (router_policy_open(&opt, &p, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    return p;
}

/* Without lambda the choice is the plain one, decision by decision, whatever things cost. */
static void lambda_zero_is_the_plain_choice(void **state)
{
    struct router_policy *p = policy("", 0.0, 0.3), *same = policy(ROUTER_POLICY_DEFAULT, 0.0, 1.0);
    struct rng r;
    rng_init(&r, 3);
    for (int round = 0; round < 2000; round++) {
        struct router_candidate c[20];
        size_t count = 1 + rng_below(&r, 20), plain = 0;
        for (size_t i = 0; i < count; i++) {
            c[i] = (struct router_candidate){.score = (float)rng_below(&r, 50) / 50.0f,
                                             .load_s = (float)rng_f64(&r) * 9.0f,
                                             .queue_s = (float)rng_f64(&r)};
            if (c[i].score > c[plain].score)
                plain = i;
        }
        assert_int_equal(router_choose(p, c, count, plain, NULL), plain);
        assert_int_equal(router_choose(same, c, count, plain, NULL), plain);
    }
    assert_true(router_policy_is_plain(p));
    assert_false(router_policy_is_plain(same));
    router_policy_close(&p);
    router_policy_close(&same);
}

static void cost_decides_inside_the_margin_only(void **state)
{
    struct router_policy *p = policy(NULL, 0.1, 0.2);
    struct router_candidate c[3] = {{.score = 0.6f, .load_s = 5.0f},
                                    {.score = 0.5f, .resident = 1},
                                    {.score = 0.3f, .resident = 1}};
    float u[3];
    assert_int_equal(router_choose(p, c, 3, 0, u), 1);
    assert_true(fabsf(u[0] - 0.1f) < 1e-6f && fabsf(u[1] - 0.5f) < 1e-6f && isinf(u[2]));
    c[0].load_s = 0.5f;
    assert_int_equal(router_choose(p, c, 3, 0, u), 0);
    c[1].score = 0.39f; /* outside */
    c[0].load_s = 50.0f;
    assert_int_equal(router_choose(p, c, 3, 0, u), 0);
    router_policy_close(&p);
}

static void a_user_expression_is_typed_and_decides(void **state)
{
    struct router_policy *p = policy("where(resident, score, score - 0.05)", 0.0, 1.0), *bad = NULL;
    struct router_candidate c[2] = {{.score = 0.52f}, {.score = 0.48f, .resident = 1}};
    struct err e = {0};
    assert_int_equal(router_choose(p, c, 2, 0, NULL), 1);
    router_policy_close(&p);
    p = policy("0 / 0", 0.0, 1.0); /* not a number anywhere: the plain choice stands */
    assert_int_equal(router_choose(p, c, 2, 0, NULL), 0);
    router_policy_close(&p);
    static const char *const wrong[] = {"score -", "resident", "nothing + 1", "score > 0.5"};
    for (size_t i = 0; i < BASE_COUNT(wrong); i++) {
        const struct router_policy_options opt = {.expr = wrong[i]};
        assert_int_equal(router_policy_open(&opt, &bad, &e), ERR_INVALID);
        assert_non_null(strstr(e.msg, "line 1"));
    }
}

static const char *header_of(void *ctx, const char *name)
{
    return strcmp(name, "x-team") == 0 ? ctx : NULL;
}

static int apply(const struct router_rule *rule, const char *text, bool *forbidden)
{
    struct router_rules *r = router_rules_open();
    struct err e = {0};
    static char team[] = "blue";
    if (router_rules_add(r, rule, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    const struct router_rule_input in = {.turn = {text, strlen(text)},
                                         .has_tools = true,
                                         .api_key = "k1",
                                         .header = header_of,
                                         .header_ctx = team};
    int pin = router_rules_apply(r, &in, forbidden, 4);
    router_rules_close(&r);
    return pin;
}

static void each_condition_holds_by_itself(void **state)
{
    static const char *const words[] = {"Select", "c++"};
    const struct router_rule none = {.has_tools = -1, .json_wanted = -1, .pin = 2};
    bool f[4] = {false};
    struct router_rule r = none;
    assert_int_equal(apply(&r, "anything", f), 2);
    r.regex = "^SELECT\\b";
    assert_int_equal(apply(&r, "SELECT 1", f), 2);
    assert_int_equal(apply(&r, "a SELECT", f), -1);
    r = none;
    r.keywords = words;
    r.keywords_count = 2;
    assert_int_equal(apply(&r, "please select one", f), 2);
    assert_int_equal(apply(&r, "selected", f), -1);
    assert_int_equal(apply(&r, "write C++, please", f), 2);
    r = none;
    r.has_tools = 0;
    assert_int_equal(apply(&r, "x", f), -1);
    r.has_tools = 1;
    assert_int_equal(apply(&r, "x", f), 2);
    r = none;
    r.json_wanted = 1;
    assert_int_equal(apply(&r, "x", f), -1);
    r = none;
    r.script = "cyrillic";
    assert_int_equal(apply(&r, "привет, ok", f), 2);
    assert_int_equal(apply(&r, "hello", f), -1);
    r = none;
    r.chars_min = 4;
    assert_int_equal(apply(&r, "abc", f), -1);
    assert_int_equal(apply(&r, "abcd", f), 2);
    r = none;
    r.api_key = "k2";
    assert_int_equal(apply(&r, "x", f), -1);
    r.api_key = "k1";
    assert_int_equal(apply(&r, "x", f), 2);
    r = none;
    r.header = "x-team: blue";
    assert_int_equal(apply(&r, "x", f), 2);
    r.header = "x-team: red";
    assert_int_equal(apply(&r, "x", f), -1);
    r.header = "x-other";
    assert_int_equal(apply(&r, "x", f), -1);
}

static void forbidding_adds_up_and_stops_a_pin(void **state)
{
    const int both[] = {1, 2, 99};
    bool f[4] = {false};
    struct router_rule r = {
        .has_tools = -1, .json_wanted = -1, .pin = -1, .forbid = both, .forbid_count = 3};
    assert_int_equal(apply(&r, "x", f), -1);
    assert_true(!f[0] && f[1] && f[2] && !f[3]);
    r = (struct router_rule){.has_tools = -1, .json_wanted = -1, .pin = 2};
    assert_int_equal(apply(&r, "x", f), -1);
}

/* A pattern that explodes and one that is wrong. */
static void no_regex_costs_more_than_its_limit(void **state)
{
    char *text = mem_alloc(100001);
    memset(text, 'a', 100000);
    bool f[4] = {false};
    struct router_rule r = {.has_tools = -1, .json_wanted = -1, .pin = 1, .regex = "^(a+)+$x?b"};
    assert_int_equal(apply(&r, text, f), -1);
    text[5] = (char)0xff; /* not UTF-8 */
    assert_int_equal(apply(&r, text, f), -1);
    free(text);
    struct router_rules *rules = router_rules_open();
    struct err e = {0};
    r.regex = "a(b";
    assert_int_equal(router_rules_add(rules, &r, &e), ERR_INVALID);
    assert_non_null(strstr(e.msg, "a(b"));
    router_rules_close(&rules);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lambda_zero_is_the_plain_choice),
        cmocka_unit_test(cost_decides_inside_the_margin_only),
        cmocka_unit_test(a_user_expression_is_typed_and_decides),
        cmocka_unit_test(each_condition_holds_by_itself),
        cmocka_unit_test(forbidding_adds_up_and_stops_a_pin),
        cmocka_unit_test(no_regex_costs_more_than_its_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
