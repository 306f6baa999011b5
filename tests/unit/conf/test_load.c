/* The file: what it sets, what it leaves, and that every mistake is named with its place. */
#include "unit.h"

#include <math.h>
#include <sys/stat.h>

static void an_empty_file_changes_nothing(void **state)
{
    const char *texts[] = {"",
                           "\n\n",
                           "# only a comment\n",
                           "---\n",
                           "~\n",
                           "server:\n",
                           "server:\n  # port: 1\ntiers:\n",
                           "experts:\n"};
    for (size_t i = 0; i < BASE_COUNT(texts); i++) {
        struct conf c, d;
        conf_init(&c);
        conf_init(&d);
        unit_must_load(&c, texts[i]);
        struct buf a = unit_text(&c, false), b = unit_text(&d, false);
        assert_string_equal(a.data, b.data);
        buf_done(&a);
        buf_done(&b);
        conf_done(&c);
        conf_done(&d);
    }
}

static void every_kind_of_value_is_read(void **state)
{
    struct conf c;
    conf_init(&c);
    unit_must_load(&c, "server:\n"
                       "  host: ::1\n"
                       "  port: 9000\n"
                       "  api_keys: [secret-1, 'secret-2']\n"
                       "  cors_origins:\n"
                       "    - https://a.example\n"
                       "  max_body: 16 MiB\n"
                       "  drain_s: 2.5\n"
                       "tiers: {hbm: 1.5GiB, policy: gdsf, loader: pread, verify: never}\n"
                       "rdu: {sockets: 3, exec: interp, numerics: f32}\n"
                       "kv: {type: q8_0}\n"
                       "router: {stages: [], lambda: 1e-3}\n"
                       "log: {requests: no}\n");
    assert_string_equal(c.server_host, "::1");
    assert_int_equal(c.server_port, 9000);
    assert_int_equal(c.server_api_keys_count, 2);
    assert_string_equal(c.server_api_keys[1], "secret-2");
    assert_string_equal(c.server_cors_origins[0], "https://a.example");
    assert_int_equal(c.server_max_body_bytes, 16 << 20);
    assert_true(c.server_drain_s == 2.5);
    assert_int_equal(c.tiers_hbm_bytes, 3ull << 29);
    assert_string_equal(c.tiers_policy, "gdsf");
    assert_int_equal(c.tiers_loader, CONF_LOADER_PREAD);
    assert_int_equal(c.tiers_verify, CONF_VERIFY_NEVER);
    assert_int_equal(c.rdu_sockets, 3);
    assert_int_equal(c.rdu_exec, CONF_EXEC_INTERP);
    assert_int_equal(c.rdu_numerics, CONF_NUMERICS_F32);
    assert_int_equal(c.kv_type, CONF_KV_Q8_0);
    assert_int_equal(c.router_stages_count, 0);
    assert_true(c.router_lambda == 0.001);
    assert_false(c.log_requests);
    assert_int_equal(c.sched_max_queue, 256); /* not in the file: as before */
    conf_done(&c);
}

static void experts_are_read_with_what_they_leave_out(void **state)
{
    struct conf c;
    conf_init(&c);
    unit_must_load(&c, "experts:\n"
                       "  - name: smollm2\n"
                       "    aliases: [general, base]\n"
                       "    model: /models/s.gguf\n"
                       "    hold: true\n"
                       "  - name: sql\n"
                       "    base: smollm2\n"
                       "    adapter: /models/sql.gguf\n"
                       "    scale: 0.5\n"
                       "    description: \"two\\nlines\"\n"
                       "    defaults: {temperature: 0, max_tokens: 64, seed: 7}\n"
                       "    ttl_s: 60\n"
                       "    priority: -3\n");
    assert_int_equal(c.experts_count, 2);
    const struct conf_expert *a = &c.experts[0], *b = &c.experts[1];
    assert_string_equal(a->name, "smollm2");
    assert_int_equal(a->aliases_count, 2);
    assert_string_equal(a->aliases[1], "base");
    assert_string_equal(a->model, "/models/s.gguf");
    assert_true(a->hold);
    assert_true(a->scale == 1);
    assert_string_equal(a->base, "");
    assert_string_equal(a->system, "");
    assert_true(isnan(a->defaults.temperature));
    assert_int_equal(a->defaults.max_tokens, -1);
    assert_string_equal(b->base, "smollm2");
    assert_true(b->scale == 0.5);
    assert_string_equal(b->description, "two\nlines");
    assert_true(b->defaults.temperature == 0);
    assert_int_equal(b->defaults.max_tokens, 64);
    assert_int_equal(b->defaults.seed, 7);
    assert_int_equal(b->defaults.top_k, -1);
    assert_true(b->ttl_s == 60);
    assert_int_equal(b->priority, -3);
    assert_false(b->hold);
    /* A second file replaces the list. */
    unit_must_load(&c, "experts: [{name: only}]\n");
    assert_int_equal(c.experts_count, 1);
    assert_string_equal(c.experts[0].name, "only");
    conf_done(&c);
}

static void relative_paths_start_at_the_file(void **state)
{
    struct conf c;
    char *real = realpath(unit_root, NULL);
    assert_non_null(real);
    conf_init(&c);
    assert_int_equal(setenv("HOME", "/home/someone", 1), 0);
    unit_must_load(&c, "store: {path: store}\n"
                       "router: {head: ~/zoo.head}\n"
                       "server: {unix_socket: /run/s}\n"
                       "experts: [{name: a, model: m/a.gguf}]\n");
    char *store = mem_format("%s/store", real), *model = mem_format("%s/m/a.gguf", real);
    assert_string_equal(c.store_path, store);
    assert_string_equal(c.experts[0].model, model);
    assert_string_equal(c.router_head, "/home/someone/zoo.head");
    assert_string_equal(c.server_unix_socket, "/run/s");
    free(store);
    free(model);
    free(real);
    conf_done(&c);
}

static void a_mistake_is_named_with_key_line_and_column(void **state)
{
    const struct {
        const char *text, *param;
        unsigned line, column;
        const char *part;
    } cases[] = {
        {"server:\n  prot: 1\n", "server.prot", 2, 3, "did you mean 'server.port'"},
        {"sever: {}\n", "sever", 1, 1, "unknown key"},
        {"hbm: 1\n", "hbm", 1, 1, "did you mean 'tiers.hbm'"},
        {"tiers:\n  hbm: 4GB\n", "tiers.hbm", 2, 8, "use B, KiB, MiB, GiB"},
        {"rdu: {sockets: 17}\n", "rdu.sockets", 1, 16, "1 to 16"},
        {"rdu: {sockets: -1}\n", "rdu.sockets", 1, 16, "out of bounds"},
        {"rdu: {sockets: 8.5}\n", "rdu.sockets", 1, 16, "not a whole number"},
        {"rdu: {sockets: 99999999999999999999}\n", "rdu.sockets", 1, 16, "out of bounds"},
        {"rdu: {sockets: '8'}\n", "rdu.sockets", 1, 16, "not a quoted text"},
        {"rdu: {sockets: [8]}\n", "rdu.sockets", 1, 16, "not a list"},
        {"rdu: {sockets: }\n", "rdu.sockets", 1, 16, "has no value"},
        {"rdu: {exec: turbo}\n", "rdu.exec", 1, 13, "interp, unfused, fused or native"},
        {"rdu: 8\n", "rdu", 1, 6, "expects keys below it"},
        {"kv: [a]\n", "kv", 1, 5, "expects keys below it"},
        {"log: {level: loud}\n", "log.level", 1, 14, "error, warn, info or debug"},
        {"log: {requests: 2}\n", "log.requests", 1, 17, "neither true nor false"},
        {"server: {drain_s: nan}\n", "server.drain_s", 1, 19, "not a number"},
        {"server: {drain_s: 0x10}\n", "server.drain_s", 1, 19, "not a number"},
        {"server: {drain_s: 1e999}\n", "server.drain_s", 1, 19, "out of bounds"},
        {"server: {host: \"a\\0b\"}\n", "server.host", 1, 16, "NUL"},
        {"server: {host: \"a\\x01b\"}\n", "server.host", 1, 16, "control character"},
        {"server: {api_keys: one}\n", "server.api_keys", 1, 20, "expects a list"},
        {"server: {api_keys: [a, [b]]}\n", "server.api_keys", 1, 24, "item 2"},
        {"server: {api_keys: [a, ~]}\n", "server.api_keys", 1, 24, "item 2"},
        {"router: {stages: [ngram, magic]}\n", "router.stages", 1, 18, "'magic'"},
        {"server: {port: 1}\nserver: {port: 2}\n", "server.port", 2, 10, "given twice"},
        {"experts: {name: a}\n", "experts", 1, 10, "expects a list of experts"},
        {"experts: []\nexperts: []\n", "experts", 2, 1, "given twice"},
        {"experts:\n  - poet\n", "experts[0]", 2, 5, "expects keys"},
        {"experts:\n  - aliases: [a]\n", "experts[0].", 2, 5, "has no name"},
        {"experts:\n  - name: a\n  - nam: b\n", "experts[1].nam", 3, 5, "'experts[1].name'"},
        {"experts:\n  - name: a\n    defaults: {temprature: 1}\n", "experts[0].defaults.temprature",
         3, 16, "'experts[0].defaults.temperature'"},
        {"experts:\n  - name: a\n    defaults: {top_p: 1.5}\n", "experts[0].defaults.top_p", 3, 23,
         "0 to 1"},
        {"? [a]\n: b\n", "", 1, 3, "a key must be a plain word"},
        {"- a\n", "", 1, 1, "not of a list"},
        {"just text\n", "", 1, 1, "not of a single value"},
        {"server: {port: 1}\n---\nserver: {port: 2}\n", "", 3, 1, "second document"},
        {"server: {port: 1\n", "", 2, 1, "flow mapping"},
        {"server:\n\tport: 1\n", "", 2, 1, "token"},
        {"server: *nobody\n", "", 1, 9, "alias"},
    };
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        struct conf c;
        struct err e;
        conf_init(&c);
        struct buf before = unit_text(&c, false);
        assert_int_equal(unit_load(&c, cases[i].text, strlen(cases[i].text), &e), ERR_INVALID);
        char place[60];
        (void)snprintf(place, sizeof(place), "c.yaml: line %u, column %u: ", cases[i].line,
                       cases[i].column);
        if (strstr(e.msg, place) == NULL || strstr(e.msg, cases[i].part) == NULL ||
            strcmp(e.param, cases[i].param) != 0)
            fail_msg("%s: message '%s' param '%s'", cases[i].text, e.msg, e.param);
        /* On failure nothing was changed. */
        struct buf after = unit_text(&c, false);
        assert_string_equal(before.data, after.data);
        buf_done(&before);
        buf_done(&after);
        conf_done(&c);
    }
}

static void a_late_mistake_undoes_what_came_before_it(void **state)
{
    struct conf c;
    struct err e;
    conf_init(&c);
    unit_must_load(&c, "server: {port: 1000}\nexperts: [{name: keep}]\n");
    const char *bad = "server: {port: 2000}\nexperts: [{name: a}, {name: b}]\nrdu: {exec: x}\n";
    assert_int_equal(unit_load(&c, bad, strlen(bad), &e), ERR_INVALID);
    assert_int_equal(c.server_port, 1000);
    assert_int_equal(c.experts_count, 1);
    assert_string_equal(c.experts[0].name, "keep");
    conf_done(&c);
}

static void files_that_cannot_be_read_say_so(void **state)
{
    struct conf c;
    struct err e;
    conf_init(&c);
    assert_int_equal(conf_load_file(&c, "/nonexistent/s.yaml", &e), ERR_NOT_FOUND);
    assert_non_null(strstr(e.msg, "/nonexistent/s.yaml"));
    assert_int_equal(conf_load_file(&c, unit_root, &e), ERR_IO);
    assert_int_equal(unit_load(&c, "a: \"\xff\"\n", 8, &e), ERR_INVALID);
    assert_int_equal(unit_load(&c, "a: b\0c\n", 7, &e), ERR_INVALID);
    conf_done(&c);
}

/* Anchors make the tree a graph, here even one with a cycle: the table bounds the walk. */
static void anchors_are_followed_and_cycles_end(void **state)
{
    struct conf c;
    struct err e;
    conf_init(&c);
    unit_must_load(&c, "server: {port: &p 9000, max_body: *p}\n"
                       "experts: [{name: a, defaults: &d {top_k: 5}}, {name: b, defaults: *d}]\n"
                       "sched: {max_queue: *p}\n");
    assert_int_equal(c.sched_max_queue, 9000);
    assert_int_equal(c.experts[1].defaults.top_k, 5);
    const char *cycles[] = {"server: &a {port: *a}\n",
                            "server: &a {host: 1, x: *a}\n",
                            "experts: &a [*a]\n",
                            "experts: [&a {name: x, defaults: *a}]\n",
                            "server: {api_keys: &a [*a]}\n",
                            "&a {server: *a}\n"};
    for (size_t i = 0; i < BASE_COUNT(cycles); i++)
        assert_int_equal(unit_load(&c, cycles[i], strlen(cycles[i]), &e), ERR_INVALID);
    conf_done(&c);
}

static void random_damage_never_crashes(void **state)
{
    static const char good[] = "server:\n  host: 127.0.0.1\n  port: 8080\n  api_keys: [a, b]\n"
                               "tiers: {hbm: 512MiB, loader: auto}\n"
                               "experts:\n  - name: x\n    aliases: [y]\n"
                               "    defaults: {top_k: 5}\n  - &q {name: z, base: x}\n";
    const char *seed_text = getenv("SWITCHYARD_SEED");
    uint64_t seed = seed_text != NULL ? strtoull(seed_text, NULL, 10) : clock_wall_ms();
    print_message("seed %llu (repeat with SWITCHYARD_SEED)\n", (unsigned long long)seed);
    struct rng r;
    rng_init(&r, seed);
    size_t loaded = 0, refused = 0;
    for (int i = 0; i < 3000; i++) {
        char text[sizeof(good)];
        memcpy(text, good, sizeof(good));
        size_t len = sizeof(good) - 1 - (rng_below(&r, 4) == 0 ? rng_below(&r, sizeof(good)) : 0);
        for (uint64_t n = rng_below(&r, 4); n > 0 && len > 0; n--)
            text[rng_below(&r, len)] = "\0\n\t :-[]{}&*!|>'\"#%@,?~a0\xc3\xff"[rng_below(&r, 28)];
        struct conf c;
        struct err e = {0};
        conf_init(&c);
        enum err_code rc = unit_load(&c, text, len, &e);
        if (rc == ERR_OK) {
            loaded++;
        } else {
            refused++;
            assert_true(e.msg[0] != '\0');
            assert_int_equal(e.code, rc);
        }
        conf_done(&c);
    }
    assert_true(loaded > 100 && refused > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_file_changes_nothing),
        cmocka_unit_test(every_kind_of_value_is_read),
        cmocka_unit_test(experts_are_read_with_what_they_leave_out),
        cmocka_unit_test(relative_paths_start_at_the_file),
        cmocka_unit_test(a_mistake_is_named_with_key_line_and_column),
        cmocka_unit_test(a_late_mistake_undoes_what_came_before_it),
        cmocka_unit_test(files_that_cannot_be_read_say_so),
        cmocka_unit_test(anchors_are_followed_and_cycles_end),
        cmocka_unit_test(random_damage_never_crashes),
    };
    return cmocka_run_group_tests(tests, unit_setup, unit_teardown);
}
