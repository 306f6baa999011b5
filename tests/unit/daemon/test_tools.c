/* Calls in the text of answers: the state machine at every way of cutting the text, and whole and
 * streamed answers over it. */
#include "daemon/api.h"
#include "tests/unit/daemon/rig.h"

/* ---- the state machine --------------------------------------------------------------------------
 */

/* Parts as one line: text, |name:arguments for each call. */
static void note(void *ctx, enum tool_part part, const char *text, size_t len)
{
    struct buf *b = ctx;
    if (part == TOOL_PART_CALL)
        buf_puts(b, "|");
    buf_append(b, text, len);
    if (part == TOOL_PART_CALL)
        buf_puts(b, ":");
}

static json_t *known_tools(void)
{
    return json_pack("[{s:{s:s}},{s:{s:s}}]", "function", "name", "f", "function", "name", "add");
}

/* The text in pieces of `step` bytes. */
static char *parsed(const struct tool_parse_options *opt, const char *text, size_t step)
{
    struct buf out = {0};
    struct tool_parse *p = tool_parse_open(opt);
    buf_puts(&out, "");
    for (size_t at = 0; at < strlen(text); at += step)
        tool_parse_push(p, text + at, BASE_MIN(step, strlen(text) - at), note, &out);
    tool_parse_end(p, note, &out);
    tool_parse_close(&p);
    return out.data;
}

static void check(const struct grammar_call_form *form, bool constrained, const char *text,
                  const char *want)
{
    json_t *tools = known_tools();
    struct tool_parse_options opt = {
        .form = form, .tools = tools, .constrained = constrained, .calls_max = 8};
    for (size_t step = 1; step <= strlen(text) + 1; step++) {
        char *got = parsed(&opt, text, step);
        if (strcmp(got, want) != 0)
            fail_msg("'%s' in pieces of %zu gave '%s', not '%s'", text, step, got, want);
        free(got);
    }
    json_decref(tools);
}

static void text_without_a_call_comes_out_as_it_was(void **state)
{
    static const char *const texts[] = {
        "",
        " ",
        "Hello.",
        "a <tool",
        "a <tool_ call> b",
        "<<tool_cal",
        "{",
        "[1, 2]",
        "{\"name\": \"Bob\", \"age\": 3}",
        "{\"name\": \"f\", \"arguments\": [1]}",
        "{\"name\": \"f\", \"arguments\": {\"a\": 1}} and more",
        "{\"name\": \"f\", \"arguments\": {\"a\": ",
        "{\"id\": 7}",
        "\n{ \"type\": \"x\"}",
    };
    for (size_t i = 0; i < BASE_COUNT(texts); i++) {
        check(&tool_form_tags, true, texts[i], texts[i]);
        check(&tool_form_tags, false, texts[i], texts[i]);
    }
    check(&tool_form_parameters, true, "a {\"name\": \"f\", \"parameters\": {}}",
          "a {\"name\": \"f\", \"parameters\": {}}");
    check(&tool_form_parameters, true, "{\"nam", "{\"nam");
}

static void calls_in_the_models_form_are_found(void **state)
{
    check(&tool_form_tags, true, "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>",
          "|f:{}");
    check(
        &tool_form_tags, true,
        "So: <tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": [1, {}], \"b\": \"}\\\"{\"}}",
        "So: |add:{\"a\": [1, {}], \"b\": \"}\\\"{\"}");
    check(&tool_form_tags, true,
          "<<tool_call>\n{\"name\": \"f\", \"arguments\": "
          "{}}\n</tool_call>\n<tool_call>\n{\"name\": \"add\", "
          "\"arguments\": {\"a\": 1}}\n</tool_call>",
          "<|f:{}|add:{\"a\": 1}");
    check(&tool_form_tags, true, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"x",
          "|f:{\"a\": \"x");
    check(&tool_form_tags, true, "<tool_call>\n{\"name\": \"f", "");
    check(&tool_form_tags, true,
          "{\"name\": \"Bob\"} <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": "
          "1}}\n</tool_call>",
          "{\"name\": \"Bob\"} |f:{\"a\": 1}");
    check(&tool_form_parameters, true, "{\"name\": \"f\", \"parameters\": {\"q\": 1}}",
          "|f:{\"q\": 1}");
    check(&tool_form_parameters, true,
          "{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"add\", \"parameters\": {}}",
          "|f:{}|add:{}");
}

static void an_answer_of_nothing_but_calls_is_taken_for_them(void **state)
{
    check(&tool_form_tags, true, "{\"name\": \"f\", \"arguments\": {\"a\": 1}}", "|f:{\"a\":1}");
    check(&tool_form_tags, false,
          " [{\"name\":\"f\",\"arguments\":{}},{\"name\":\"add\",\"parameters\":{\"b\":\"}\"}}]\n",
          "|f:{}|add:{\"b\":\"}\"}");
    check(&tool_form_tags, false,
          "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":{}}}", "|f:{}");
    check(&tool_form_parameters, true,
          "{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}", "|f:{}");
    check(&tool_form_tags, false,
          "{\"name\":\"f\",\"arguments\":{}};{\"name\":\"f\",\"arguments\":{}}", "|f:{}|f:{}");
    check(&tool_form_tags, false, "{\"name\":\"nobody\",\"arguments\":{}}",
          "{\"name\":\"nobody\",\"arguments\":{}}");
}

static void a_prompt_that_ends_inside_a_call_is_gone_on_from(void **state)
{
    json_t *tools = known_tools();
    struct tool_parse_options opt = {.form = &tool_form_tags,
                                     .tools = tools,
                                     .start = GRAMMAR_TOOLS_AT_ARGUMENTS,
                                     .name = "f",
                                     .constrained = true,
                                     .calls_max = 1};
    char *got = parsed(&opt, " {\"a\": \"<tool_call>\"}", 3);
    assert_string_equal(got, "|f:{\"a\": \"<tool_call>\"}");
    free(got);
    opt.start = GRAMMAR_TOOLS_AT_NAME;
    got = parsed(&opt, "add\", \"arguments\": {}}\n</tool_call>", 2);
    assert_string_equal(got, "|add:{}");
    free(got);
    json_decref(tools);
}

/* ---- answers
 * ---------------------------------------------------------------------------------------- */

#define TOOLS                                                                                      \
    "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":"     \
    "\"object\","                                                                                  \
    "\"properties\":{\"a\":{\"type\":\"integer\"}}}}}]"
#define ASK "{\"model\":\"alpha\",\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]," TOOLS

static void notify_nobody(struct request *r)
{
    (void)r;
}

static struct api_call *ran(struct rig *r, const char *body)
{
    struct err e = {0};
    struct api_call *c = NULL;
    uint32_t retry;
    if (api_call_open(&r->server, API_CHAT, body, strlen(body), &c, &e) != ERR_OK ||
        api_call_prepare(c, NULL, &e) != ERR_OK ||
        api_call_submit(c, notify_nobody, NULL, &retry, &e) != ERR_OK)
        fail_msg("%s: %s", body, e.msg);
    rig_wait(api_call_done(c));
    return c;
}

static json_t *whole(struct rig *r, const char *body)
{
    struct buf out = {0};
    struct err e = {0};
    struct api_call *c = ran(r, body);
    assert_int_equal(api_call_render(c, &out, &e), ERR_OK);
    json_t *v = json_loadb(out.data, out.len, 0, NULL);
    assert_non_null(v);
    api_call_close(&c);
    buf_done(&out);
    return v;
}

static json_t *choice_of(const json_t *v)
{
    return json_array_get(json_object_get(v, "choices"), 0);
}

static void whole_answers_have_the_calls(void **state)
{
    static const char text[] =
        "Yes. <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    struct rig r;
    rig_open_api(&r, 1);
    fake_engine_script(&(struct fake_script){.text = text, .tokens = sizeof text - 1});
    json_t *v = whole(&r, ASK "}");
    const json_t *message = json_object_get(choice_of(v), "message");
    const json_t *calls = json_object_get(message, "tool_calls"), *call = json_array_get(calls, 0);
    const json_t *function = json_object_get(call, "function");
    assert_string_equal(json_string_value(json_object_get(message, "content")), "Yes. ");
    assert_int_equal(json_array_size(calls), 1);
    assert_string_equal(json_string_value(json_object_get(call, "type")), "function");
    assert_string_equal(json_string_value(json_object_get(function, "name")), "f");
    assert_string_equal(json_string_value(json_object_get(function, "arguments")), "{\"a\": 1}");
    assert_string_equal(json_string_value(json_object_get(choice_of(v), "finish_reason")),
                        "tool_calls");
    json_decref(v);
    /* Cut by the limit, the reason is the limit. */
    v = whole(&r, ASK ",\"max_tokens\":50}");
    assert_string_equal(json_string_value(json_object_get(choice_of(v), "finish_reason")),
                        "length");
    json_decref(v);
    /* Without tools it is text. */
    v = whole(&r, ASK ",\"tool_choice\":\"none\"}");
    message = json_object_get(choice_of(v), "message");
    assert_string_equal(json_string_value(json_object_get(message, "content")), text);
    assert_null(json_object_get(message, "tool_calls"));
    json_decref(v);
    rig_close(&r);
}

static void a_forced_call_has_no_content(void **state)
{
    struct rig r;
    struct buf prompt = {0};
    rig_open_api(&r, 1);
    fake_engine_script(&(struct fake_script){.text = "{\"a\": 7}", .tokens = 8});
    json_t *v = whole(
        &r, ASK
        ",\"stop\":\"7\",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"f\"}}}");
    const json_t *message = json_object_get(choice_of(v), "message");
    const json_t *call = json_array_get(json_object_get(message, "tool_calls"), 0);
    assert_true(json_is_null(json_object_get(message, "content")));
    /* A stop string does not tear it. */
    assert_string_equal(
        json_string_value(json_object_get(json_object_get(call, "function"), "arguments")),
        "{\"a\": 7}");
    fake_engine_last_prompt(&prompt);
    buf_append(&prompt, "", 1);
    assert_non_null(strstr(prompt.data, "<tool_call>\n{\"name\": \"f\", \"arguments\":"));
    json_decref(v);
    buf_done(&prompt);
    rig_close(&r);
}

/* Puts the deltas of a stream together as clients do. */
static void streamed_calls_add_up(void **state)
{
    static const char text[] =
        "Ok <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 12}}\n</tool_call>\n"
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>";
    struct rig r;
    struct buf out = {0}, content = {0}, arguments[2] = {{0}, {0}};
    unsigned names[2] = {0}, last_index = 0;
    rig_open_api(&r, 1);
    fake_engine_script(&(struct fake_script){.text = text, .tokens = sizeof text - 1});
    struct api_call *c = ran(&r, ASK ",\"stream\":true,\"logprobs\":true}");
    while (!api_call_render_events(c, &out))
        ;
    buf_append(&out, "", 1);
    const char *finish = NULL;
    json_t *keep = json_array();
    size_t scored = 0;
    for (char *at = out.data; (at = strstr(at, "data: {")) != NULL; at += 6) {
        json_t *v = json_loads(at + 6, JSON_DISABLE_EOF_CHECK, NULL);
        assert_non_null(v);
        json_array_append_new(keep, v);
        const json_t *choice = choice_of(v), *delta = json_object_get(choice, "delta");
        const json_t *call = json_array_get(json_object_get(delta, "tool_calls"), 0);
        const json_t *function = json_object_get(call, "function");
        scored += json_array_size(json_object_get(json_object_get(choice, "logprobs"), "content"));
        if (json_is_string(json_object_get(delta, "content")))
            buf_puts(&content, json_string_value(json_object_get(delta, "content")));
        if (json_is_string(json_object_get(choice, "finish_reason")))
            finish = json_string_value(json_object_get(choice, "finish_reason"));
        if (call == NULL)
            continue;
        last_index = (unsigned)json_integer_value(json_object_get(call, "index"));
        assert_true(last_index < 2);
        names[last_index] += json_object_get(function, "name") != NULL;
        assert_int_equal(json_object_get(call, "id") != NULL,
                         json_object_get(function, "name") != NULL);
        buf_puts(&arguments[last_index], json_string_value(json_object_get(function, "arguments")));
    }
    assert_string_equal(content.data, "Ok ");
    assert_string_equal(arguments[0].data, "{\"a\": 12}");
    assert_string_equal(arguments[1].data, "{}");
    assert_int_equal(names[0], 1);
    assert_int_equal(names[1], 1);
    assert_string_equal(finish, "tool_calls");
    assert_int_equal(scored, sizeof text - 1);
    json_decref(keep);
    api_call_close(&c);
    buf_done(&out);
    buf_done(&content);
    buf_done(&arguments[0]);
    buf_done(&arguments[1]);
    rig_close(&r);
}

/* ---- conversations without a template of their own for calls
 * ------------------------------------------- */

static void calls_of_the_past_become_text_where_a_template_knows_none(void **state)
{
    struct tool_format f = {.takes_system = false};
    json_t *tools = json_pack("[{s:s,s:{s:s}}]", "type", "function", "function", "name", "add");
    json_t *messages = json_loads("[{\"role\":\"user\",\"content\":\"2+3?\"},"
                                  "{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{"
                                  "\"id\":\"x\",\"function\":{\"name\":\"add\","
                                  "\"arguments\":{\"a\":2}}}]},"
                                  "{\"role\":\"tool\",\"tool_call_id\":\"x\",\"content\":\"5\"},"
                                  "{\"role\":\"tool\",\"tool_call_id\":\"y\",\"content\":\"6\"},"
                                  "{\"role\":\"user\",\"content\":\"And?\"}]",
                                  0, NULL);
    tool_format_messages(&f, messages, tools);
    assert_int_equal(json_array_size(messages), 3);
    const char *first = json_string_value(json_object_get(json_array_get(messages, 0), "content"));
    assert_non_null(strstr(first, "{\"name\": \"add\"}\n</tools>"));
    assert_string_equal(first + strlen(first) - 6, "\n\n2+3?");
    assert_string_equal(
        json_string_value(json_object_get(json_array_get(messages, 1), "content")),
        "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 2}}\n</tool_call>");
    assert_string_equal(
        json_string_value(json_object_get(json_array_get(messages, 2), "content")),
        "<tool_response>\n5\n</tool_response>\n<tool_response>\n6\n</tool_response>\nAnd?");
    json_decref(messages);
    json_decref(tools);
}

static void ids_get_the_length_that_a_template_wants(void **state)
{
    struct tool_format f = {.takes_tools = true, .renders_calls = true, .short_ids = true};
    json_t *messages = json_loads(
        "[{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"id\":\"call_1\"}]},"
        "{\"role\":\"tool\",\"tool_call_id\":\"call_1\",\"content\":\"5\"}]",
        0, NULL);
    tool_format_messages(&f, messages, NULL);
    const json_t *call =
        json_array_get(json_object_get(json_array_get(messages, 0), "tool_calls"), 0);
    const char *a = json_string_value(json_object_get(call, "id"));
    const char *b = json_string_value(json_object_get(json_array_get(messages, 1), "tool_call_id"));
    assert_int_equal(strlen(a), 9);
    assert_string_equal(a, b);
    json_decref(messages);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_without_a_call_comes_out_as_it_was),
        cmocka_unit_test(calls_in_the_models_form_are_found),
        cmocka_unit_test(an_answer_of_nothing_but_calls_is_taken_for_them),
        cmocka_unit_test(a_prompt_that_ends_inside_a_call_is_gone_on_from),
        cmocka_unit_test(whole_answers_have_the_calls),
        cmocka_unit_test(a_forced_call_has_no_content),
        cmocka_unit_test(streamed_calls_add_up),
        cmocka_unit_test(calls_of_the_past_become_text_where_a_template_knows_none),
        cmocka_unit_test(ids_get_the_length_that_a_template_wants),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
