/* Rules across keys: each is broken by one small file and named in the answer. */
#include "unit.h"

static void each_broken_rule_is_named(void **state)
{
    const struct {
        const char *text, *param, *part;
    } cases[] = {
        {"server: {host: 0.0.0.0}", "server.host", "server.api_keys"},
        {"server: {host: '::'}", "server.host", "reachable"},
        {"server: {host: box.example}", "server.host", "reachable"},
        {"server: {host: 128.0.0.1}", "server.host", "reachable"},
        {"server: {host: ''}", "server.host", "empty"},
        {"server: {api_keys: ['']}", "server.api_keys", "empty"},
        {"server: {api_keys: ['a b']}", "server.api_keys", "blank"},
        {"server: {api_keys: ['***']}", "server.api_keys", "***"},
        {"server: {api_keys: [k, j, k]}", "server.api_keys", "keys 1 and 3"},
        {"server: {cors_origins: [chat.example.com]}", "server.cors_origins", "scheme"},
        {"server: {unix_socket: "
         "/0123456789012345678901234567890123456789012345678901234567890123456789"
         "0123456789012345678901234567890123456789}",
         "server.unix_socket", "107"},
        {"store: {path: ''}", "store.path", "empty"},
        {"kv: {page_tokens: 48}", "kv.page_tokens", "multiple of 32"},
        {"rdu: {exec: native, compiler: ''}", "rdu.compiler", "native"},
        {"router: {stages: [ngram, ngram]}", "router.stages", "twice"},
        {"experts: [{name: a}, {name: a}]", "experts[1].name", "already"},
        {"experts: [{name: a}, {name: b, aliases: [a]}]", "experts[1].aliases", "already"},
        {"experts: [{name: a, aliases: [b]}, {name: b}]", "experts[1].name", "expert 'a'"},
        {"experts: [{name: a, aliases: [a]}]", "experts[0].aliases", "twice"},
        {"experts: [{name: a, aliases: [b, b]}]", "experts[0].aliases", "twice"},
        {"experts: [{name: auto}]", "experts[0].name", "router"},
        {"experts: [{name: a, aliases: [auto]}]", "experts[0].aliases", "router"},
        {"experts: [{name: 'a b'}]", "experts[0].name", "character"},
        {"experts: [{name: '\xc3\xa9'}]", "experts[0].name", "character"},
        {"experts: [{name: -a}]", "experts[0].name", "begins"},
        {"experts: [{name: a123456789012345678901234567890123456789012345678901234567890123}]",
         "experts[0].name", "63 bytes"},
        {"experts: [{name: a, base: nobody}]", "experts[0].base", "no expert 'nobody'"},
        {"experts: [{name: a, base: a}]", "experts[0].base", "its own base"},
        {"experts: [{name: a, adapter: x}]", "experts[0].base", "no base"},
        {"experts: [{name: b}, {name: a, base: b, model: x}]", "experts[1].base", "both"},
        {"experts: [{name: b}, {name: c, base: b}, {name: a, base: c}]", "experts[2].base",
         "sits on 'b'"},
    };
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        struct conf c;
        struct err e;
        conf_init(&c);
        unit_must_load(&c, cases[i].text);
        if (conf_validate(&c, &e) != ERR_INVALID)
            fail_msg("accepted: %s", cases[i].text);
        if (strcmp(e.param, cases[i].param) != 0 || strstr(e.msg, cases[i].part) == NULL)
            fail_msg("%s: param '%s' message '%s'", cases[i].text, e.param, e.msg);
        conf_done(&c);
    }
}

static void what_keeps_the_rules_is_accepted(void **state)
{
    const char *texts[] = {
        "server: {host: 127.8.9.1}",
        "server: {host: '::1'}",
        "server: {host: localhost, port: 0}",
        "server: {host: 0.0.0.0, api_keys: [k]}",
        "server: {cors_origins: ['*', 'https://a.b', 'http://localhost:3000']}",
        "kv: {page_tokens: 64}",
        "router: {stages: [ngram, encoder, llm]}",
        /* The base may come later in the list, and be meant by an alias. */
        "experts: [{name: b, base: general, adapter: x}, {name: a, aliases: [general]}]",
        "experts: [{name: org/model-1.5:q4}]",
        "experts: [{name: a12345678901234567890123456789012345678901234567890123456789012}]",
    };
    for (size_t i = 0; i < BASE_COUNT(texts); i++) {
        struct conf c;
        struct err e;
        conf_init(&c);
        unit_must_load(&c, texts[i]);
        if (conf_validate(&c, &e) != ERR_OK)
            fail_msg("%s: %s", texts[i], e.msg);
        conf_done(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_broken_rule_is_named),
        cmocka_unit_test(what_keeps_the_rules_is_accepted),
    };
    return cmocka_run_group_tests(tests, unit_setup, unit_teardown);
}
