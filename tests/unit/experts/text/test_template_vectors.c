/* Chat templates against what Python's chat code renders: real models' templates over
 * conversations, and single features. */
#include "tests/unit/experts/text/text.h"

struct tally {
    size_t cases, wrong;
    char *source_name, *source; /* the template read last */
    size_t source_len;
    json_t *context; /* of the features */
};

static void load_source(struct tally *v, const char *name)
{
    if (v->source_name != NULL && strcmp(v->source_name, name) == 0)
        return;
    char *file = mem_format("fixtures/templates/%s", name), *path = unit_shared(file);
    struct buf b = {0};
    struct err e;
    assert_non_null(path);
    unit_ok(file_read(path, BASE_MIB, &b, &e), &e);
    free(v->source);
    free(v->source_name);
    v->source_name = mem_strdup(name);
    v->source = b.data;
    v->source_len = b.len;
    free(file);
    free(path);
}

static char *member_json(const json_t *o, const char *key)
{
    const json_t *m = json_object_get(o, key);
    return m == NULL || json_is_null(m) ? NULL : json_dumps(m, JSON_ENCODE_ANY);
}

/* What came out against what the line wants; an error of Python's own allows anything but a crash.
 */
static void judge(struct tally *v, const json_t *o, bool raised, enum err_code rc,
                  const struct buf *out, const struct err *e, const char *name)
{
    const json_t *expected = json_object_get(o, "expected");
    bool ok = true;
    if (json_is_string(expected)) {
        size_t len = json_string_length(expected);
        ok = rc == ERR_OK && out->len == len &&
             (len == 0 || memcmp(out->data, json_string_value(expected), len) == 0);
    } else if (raised) {
        ok = rc == ERR_INVALID;
    }
    v->cases++;
    if (ok)
        return;
    v->wrong++;
    char shown[240];
    print_message("%s: %s\n", name, rc == ERR_OK ? text_show(out->data, out->len, shown) : e->msg);
}

static void render_line(void *ctx, const json_t *o)
{
    struct tally *v = ctx;
    size_t len;
    const char *name = text_member(o, "template", &len);
    load_source(v, name);
    struct chat_template *t = NULL;
    struct buf out = {0};
    struct err e = {0};
    char *messages = member_json(o, "messages"), *tools = member_json(o, "tools");
    char *extra = member_json(o, "extra");
    struct template_input in = {.messages_json = messages,
                                .tools_json = tools,
                                .extra_json = extra,
                                .add_generation_prompt =
                                    json_is_true(json_object_get(o, "add_generation_prompt")),
                                .bos_token = json_string_value(json_object_get(o, "bos_token")),
                                .eos_token = json_string_value(json_object_get(o, "eos_token")),
                                .now = 1721984703};
    unit_ok(template_parse(v->source, v->source_len, &t, &e), &e);
    enum err_code rc = template_render(t, &in, &out, &e);
    bool raised = json_is_true(json_object_get(o, "error_from_template"));
    judge(v, o, raised, rc, &out, &e, name);
    if (raised && rc == ERR_INVALID)
        assert_string_equal(e.msg, json_string_value(json_object_get(o, "message")));
    template_close(&t);
    free(messages);
    free(tools);
    free(extra);
    buf_done(&out);
}

static void real_templates_render_as_in_python(void **state)
{
    struct tally v = {0};
    if (!text_each_line("fixtures/templates/render.jsonl", render_line, &v))
        skip();
    print_message("%zu renderings, %zu wrong\n", v.cases, v.wrong);
    assert_int_equal(v.wrong, 0);
    free(v.source);
    free(v.source_name);
}

static void feature_line(void *ctx, const json_t *o)
{
    struct tally *v = ctx;
    if (json_object_get(o, "context") != NULL) {
        v->context = json_deep_copy(json_object_get(o, "context"));
        return;
    }
    size_t len;
    const char *source = text_member(o, "template", &len);
    char *extra = json_dumps(v->context, 0);
    struct buf out = {0};
    struct err e = {0};
    enum err_code rc = text_render(source, extra, &out, &e);
    const char *kind = json_string_value(json_object_get(o, "kind"));
    judge(v, o, kind != NULL && strcmp(kind, "raise") == 0, rc, &out, &e, source);
    free(extra);
    buf_done(&out);
}

static void single_features_render_as_in_python(void **state)
{
    struct tally v = {0};
    if (!text_each_line("fixtures/templates/features.jsonl", feature_line, &v))
        skip();
    print_message("%zu features, %zu wrong\n", v.cases, v.wrong);
    json_decref(v.context);
    assert_int_equal(v.wrong, 0);
}

int main(void)
{
    (void)setenv("TZ", "UTC", 1); /* the vectors' clock */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_templates_render_as_in_python),
        cmocka_unit_test(single_features_render_as_in_python),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
