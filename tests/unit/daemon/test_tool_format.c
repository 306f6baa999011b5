/* What probing finds out about real chat templates: the ones of the shared data. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/tool_format.h"

static struct chat_template *read_template(const char *name)
{
    struct chat_template *t = NULL;
    struct buf text = {0};
    struct err e = {0};
    const char *shared = getenv("SWITCHYARD_SHARED");
    char *path = mem_format("%s/fixtures/templates/%s.jinja", shared != NULL ? shared : ".", name);
    if (file_read(path, 1 << 20, &text, &e) == ERR_OK &&
        template_parse(text.data, text.len, &t, &e) != ERR_OK)
        print_message("%s: %s\n", name, e.msg);
    buf_done(&text);
    free(path);
    return t;
}

static void templates_are_known_by_what_they_render(void **state)
{
    static const struct {
        const char *name, *marker;
        bool takes_tools, renders_calls, takes_system, short_ids;
    } want[] = {
        {"smollm2", "<tool_call>", false, false, true, false},
        {"google-gemma-2-2b-it", "<tool_call>", false, false, false, false},
        {"Qwen-Qwen2.5-7B-Instruct", "<tool_call>", true, true, true, false},
        {"NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "<tool_call>", true, true, true, false},
        {"meta-llama-Llama-3.1-8B-Instruct", "{\"name\": \"", true, true, true, false},
        {"mistralai-Mistral-Nemo-Instruct-2407", "[TOOL_CALLS]", true, true, true, true},
        {"meetkai-functionary-medium-v3.1", "<function=", true, true, true, false},
    };
    size_t seen = 0;
    for (size_t i = 0; i < BASE_COUNT(want); i++) {
        struct tool_format f;
        struct chat_template *t = read_template(want[i].name);
        if (t == NULL)
            continue;
        seen++;
        tool_format_probe(t, NULL, &f);
        print_message("%s: marker %s, tools %d, calls %d, system %d, short ids %d\n", want[i].name,
                      f.form->marker, f.takes_tools, f.renders_calls, f.takes_system, f.short_ids);
        assert_string_equal(f.form->marker, want[i].marker);
        assert_int_equal(f.takes_tools, want[i].takes_tools);
        assert_int_equal(f.renders_calls, want[i].renders_calls);
        if (!f.takes_tools) /* else nobody asks */
            assert_int_equal(f.takes_system, want[i].takes_system);
        assert_int_equal(f.short_ids, want[i].short_ids);
        template_close(&t);
    }
    if (seen == 0) {
        print_message("SWITCHYARD_SHARED has no templates: skipped\n");
        skip();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(templates_are_known_by_what_they_render),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
