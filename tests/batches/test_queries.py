from bi_ray.batches.queries import step_prompts


def test_every_query_comes_once_per_pass_and_steps_are_independent():
    stream = [i for step in range(1, 11) for i in step_prompts(20, 6, step, seed=3)]
    assert sorted(stream[:20]) == list(range(20))
    assert sorted(stream[20:40]) == list(range(20))
    assert stream[:20] != stream[20:40]
    assert step_prompts(20, 6, 4, seed=3) == stream[18:24]  # asked alone, as after a resume
    assert step_prompts(20, 6, 4, seed=4) != stream[18:24]
