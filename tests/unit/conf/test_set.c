/* Defaults, single keys, environment, the list of keys, printing and the example file. */
#include "unit.h"

#include "conf/schema.h"

#include <ctype.h>

static void defaults_are_those_of_the_table(void **state)
{
    struct conf c;
    assert_int_equal(unsetenv("XDG_DATA_HOME"), 0);
    assert_int_equal(setenv("HOME", "/home/someone", 1), 0);
    conf_init(&c);
    assert_string_equal(c.server_host, "127.0.0.1");
    assert_int_equal(c.server_port, 8080);
    assert_int_equal(c.server_max_body_bytes, 8 << 20);
    assert_true(c.server_drain_s == 30);
    assert_string_equal(c.store_path, "/home/someone/.local/share/switchyard/store");
    assert_string_equal(c.tiers_policy, "gdsf");
    assert_int_equal(c.rdu_sockets, 8);
    assert_int_equal(c.rdu_exec, CONF_EXEC_FUSED);
    assert_string_equal(c.rdu_chip, "sn40l");
    assert_int_equal(c.kv_page_tokens, 32);
    assert_int_equal(c.sched_max_defer_ms, 500);
    assert_int_equal(c.router_stages_count, 2);
    assert_string_equal(c.router_stages[0], "ngram");
    assert_string_equal(c.router_stages[1], "encoder");
    assert_true(c.log_requests);
    assert_int_equal(conf_validate(&c, NULL), ERR_OK);
    conf_done(&c);

    assert_int_equal(setenv("XDG_DATA_HOME", "/data", 1), 0);
    conf_init(&c);
    assert_string_equal(c.store_path, "/data/switchyard/store");
    conf_done(&c);
    assert_int_equal(unsetenv("XDG_DATA_HOME"), 0);
    assert_int_equal(unsetenv("HOME"), 0);
    conf_init(&c);
    assert_string_equal(c.store_path, "/var/lib/switchyard/store");
    conf_done(&c);
    conf_done(&c);
}

static void bounds_of_every_number_are_enforced(void **state)
{
    for (size_t i = 0; i < conf_top_keys_count; i++) {
        const struct conf_key *key = &conf_top_keys[i];
        if (key->kind == CONF_KIND_BOOL || key->choices != NULL || key->kind >= CONF_KIND_TEXT)
            continue;
        struct conf c;
        struct err e;
        char text[64];
        conf_init(&c);
        (void)snprintf(text, sizeof(text), "%.0f", key->min);
        assert_int_equal(conf_set(&c, key->name, text, &e), ERR_OK);
        (void)snprintf(text, sizeof(text), "%.0f", key->max);
        assert_int_equal(conf_set(&c, key->name, text, &e), ERR_OK);
        struct buf before = unit_text(&c, true);
        (void)snprintf(text, sizeof(text), "%.0f", key->max + BASE_MAX(1, key->max / 1024));
        assert_int_equal(conf_set(&c, key->name, text, &e), ERR_INVALID);
        assert_string_equal(e.param, key->name);
        (void)snprintf(text, sizeof(text), "%.0f", key->min - 1);
        assert_int_equal(conf_set(&c, key->name, text, &e), ERR_INVALID);
        struct buf after = unit_text(&c, true);
        assert_string_equal(before.data, after.data);
        buf_done(&before);
        buf_done(&after);
        conf_done(&c);
    }
}

static void one_key_is_set_from_text(void **state)
{
    struct conf c;
    struct err e;
    conf_init(&c);
    assert_int_equal(conf_set(&c, "tiers.hbm", "512MiB", &e), ERR_OK);
    assert_int_equal(c.tiers_hbm_bytes, 512 << 20);
    assert_int_equal(conf_set(&c, "server.api_keys", " a , b,,c, ", &e), ERR_OK);
    assert_int_equal(c.server_api_keys_count, 3);
    assert_string_equal(c.server_api_keys[0], "a");
    assert_string_equal(c.server_api_keys[2], "c");
    assert_int_equal(conf_set(&c, "server.api_keys", "", &e), ERR_OK);
    assert_int_equal(c.server_api_keys_count, 0);
    assert_int_equal(conf_set(&c, "rdu.exec", "native", &e), ERR_OK);
    assert_int_equal(c.rdu_exec, CONF_EXEC_NATIVE);
    assert_int_equal(conf_set(&c, "rdu.exec", "Native", &e), ERR_INVALID);
    assert_int_equal(conf_set(&c, "rdu.exec", "nat", &e), ERR_INVALID);
    assert_int_equal(c.rdu_exec, CONF_EXEC_NATIVE);
    assert_int_equal(conf_set(&c, "store.path", "relative", &e), ERR_OK);
    assert_string_equal(c.store_path, "relative"); /* a flag's path starts where we are */
    assert_int_equal(conf_set(&c, "tiers.hmb", "1", &e), ERR_INVALID);
    assert_non_null(strstr(e.msg, "did you mean 'tiers.hbm'"));
    assert_int_equal(conf_set(&c, "", "1", &e), ERR_INVALID);
    assert_int_equal(conf_set(&c, "experts", "x", &e), ERR_INVALID);
    assert_non_null(strstr(e.msg, "configuration file only"));
    assert_int_equal(conf_set(&c, "server.port", "1", NULL), ERR_OK);
    assert_int_equal(conf_set(&c, "server.port", "x", NULL), ERR_INVALID);
    conf_done(&c);
}

static void environment_reaches_every_key_and_only_keys(void **state)
{
    size_t count;
    const struct conf_key_info *infos = conf_keys(&count);
    for (size_t i = 0; i < count; i++) {
        if (strchr(infos[i].key, '[') != NULL)
            continue;
        char name[96] = "SWITCHYARD_";
        for (size_t k = 0; infos[i].key[k] != '\0'; k++)
            name[11 + k] = infos[i].key[k] == '.' ? '_' : (char)toupper(infos[i].key[k]);
        struct conf c;
        struct err e;
        conf_init(&c);
        assert_int_equal(setenv(name, "", 1), 0); /* empty = nobody set it */
        assert_int_equal(conf_load_environment(&c, &e), ERR_OK);
        /* A control character is wrong for every key: the variable is read. */
        assert_int_equal(setenv(name, "\x01", 1), 0);
        struct buf before = unit_text(&c, true);
        assert_int_equal(conf_load_environment(&c, &e), ERR_INVALID);
        assert_non_null(strstr(e.msg, name));
        assert_string_equal(e.param, infos[i].key);
        struct buf after = unit_text(&c, true);
        assert_string_equal(before.data, after.data);
        buf_done(&before);
        buf_done(&after);
        assert_int_equal(unsetenv(name), 0);
        conf_done(&c);
    }
    struct conf c;
    struct err e;
    conf_init(&c);
    assert_int_equal(setenv("SWITCHYARD_CPU", "scalar", 1), 0);
    assert_int_equal(setenv("SWITCHYARD_TIERS_HBM", "2GiB", 1), 0);
    assert_int_equal(setenv("SWITCHYARD_SERVER_API_KEYS", "k1,k2", 1), 0);
    assert_int_equal(conf_load_environment(&c, &e), ERR_OK);
    assert_int_equal(c.tiers_hbm_bytes, 2ull << 30);
    assert_int_equal(c.server_api_keys_count, 2);
    assert_int_equal(unsetenv("SWITCHYARD_TIERS_HBM"), 0);
    assert_int_equal(unsetenv("SWITCHYARD_SERVER_API_KEYS"), 0);
    conf_done(&c);
}

static void every_key_is_explained(void **state)
{
    size_t count;
    const struct conf_key_info *infos = conf_keys(&count);
    assert_int_equal(count, conf_top_keys_count + conf_expert_keys_count);
    for (size_t i = 0; i < count; i++) {
        assert_true(strlen(infos[i].help) > 10);
        assert_true(infos[i].type[0] != '\0');
        assert_non_null(infos[i].default_text);
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(infos[i].key, infos[j].key);
    }
    for (size_t i = 0; i + 1 < conf_top_keys_count; i++) {
        /* Rows of one section stand together: printing relies on it. */
        size_t len = strcspn(conf_top_keys[i].name, ".") + 1;
        if (strncmp(conf_top_keys[i].name, conf_top_keys[i + 1].name, len) == 0)
            continue;
        for (size_t j = i + 1; j < conf_top_keys_count; j++)
            assert_true(strncmp(conf_top_keys[i].name, conf_top_keys[j].name, len) != 0);
    }
}

static const char rich[] = "server: {port: 9000, drain_s: 0.1, cors_origins: ['*']}\n"
                           "tiers: {hbm: 1536MiB, ddr: 1023, loader: buffered}\n"
                           "rdu: {exec: unfused}\n"
                           "router: {policy: \"a \\\"quoted\\\" \\\\ line\\nand more\\t\\u00e9\"}\n"
                           "experts:\n"
                           "  - {name: a, aliases: [b, c], hold: true, context: 2048}\n"
                           "  - {name: d, base: a, adapter: /x.gguf, scale: 0.3333333333333333,\n"
                           "     defaults: {temperature: 0.7, top_k: 40, seed: 9007199254740991}}\n"
                           "log: {level: debug, requests: false}\n";

static void printed_yaml_reads_back_the_same(void **state)
{
    struct conf a, b;
    conf_init(&a);
    conf_init(&b);
    unit_must_load(&a, rich);
    struct buf yaml = unit_text(&a, false);
    unit_must_load(&b, yaml.data);
    struct buf again = unit_text(&b, false);
    assert_string_equal(yaml.data, again.data);
    assert_int_equal(b.tiers_ddr_bytes, 1023);
    assert_string_equal(b.router_policy, "a \"quoted\" \\ line\nand more\t\xc3\xa9");
    assert_true(b.experts[1].scale == 0.3333333333333333);
    assert_int_equal(b.experts[1].defaults.seed, 9007199254740991);
    /* JSON is YAML: it reads back as well. */
    struct conf d;
    conf_init(&d);
    struct buf json = unit_text(&a, true);
    unit_must_load(&d, json.data);
    struct buf third = unit_text(&d, false);
    assert_string_equal(yaml.data, third.data);
    buf_done(&yaml);
    buf_done(&again);
    buf_done(&json);
    buf_done(&third);
    conf_done(&a);
    conf_done(&b);
    conf_done(&d);
}

static void keys_are_never_printed(void **state)
{
    struct conf c;
    conf_init(&c);
    assert_int_equal(conf_set(&c, "server.api_keys", "hunter2,hunter3", NULL), ERR_OK);
    for (int json = 0; json < 2; json++) {
        struct buf out = unit_text(&c, json);
        assert_null(strstr(out.data, "hunter"));
        assert_non_null(strstr(out.data, "[\"***\", \"***\"]"));
        buf_done(&out);
    }
    conf_done(&c);
}

static void the_example_shows_every_key_at_its_default(void **state)
{
    const char *source = getenv("SWITCHYARD_SOURCE");
    char *path = mem_format("%s/conf/switchyard.example.yaml", source != NULL ? source : ".");
    assert_int_equal(unsetenv("XDG_DATA_HOME"), 0);
    assert_int_equal(setenv("HOME", "/home/someone", 1), 0);
    struct conf c, d;
    struct err e;
    conf_init(&c);
    conf_init(&d);
    if (conf_load_file(&c, path, &e) != ERR_OK || conf_validate(&c, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    assert_int_equal(c.experts_count, 2);

    struct buf text = {0};
    assert_int_equal(file_read(path, 1 << 20, &text, NULL), ERR_OK);
    size_t count;
    const struct conf_key_info *infos = conf_keys(&count);
    for (size_t i = 0; i < count; i++) {
        const char *dot = strrchr(infos[i].key, '.');
        char *line = mem_format(" %s: ", dot + 1);
        if (strstr(text.data, line) == NULL)
            fail_msg("the example lacks %s", infos[i].key);
        free(line);
    }
    /* Without its experts it is the default configuration, to the letter. */
    while (c.experts_count > 0)
        conf_expert_done(&c.experts[--c.experts_count]);
    struct buf a = unit_text(&c, false), b = unit_text(&d, false);
    assert_string_equal(a.data, b.data);
    buf_done(&a);
    buf_done(&b);
    buf_done(&text);
    free(path);
    conf_done(&c);
    conf_done(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_those_of_the_table),
        cmocka_unit_test(bounds_of_every_number_are_enforced),
        cmocka_unit_test(one_key_is_set_from_text),
        cmocka_unit_test(environment_reaches_every_key_and_only_keys),
        cmocka_unit_test(every_key_is_explained),
        cmocka_unit_test(printed_yaml_reads_back_the_same),
        cmocka_unit_test(keys_are_never_printed),
        cmocka_unit_test(the_example_shows_every_key_at_its_default),
    };
    return cmocka_run_group_tests(tests, unit_setup, unit_teardown);
}
