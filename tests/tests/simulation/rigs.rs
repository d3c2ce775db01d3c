//! Agents with several workers: each gets its own leases, and what happens to one is not the others' business.

use std::collections::BTreeSet;

use skein_proto::ids::{JobId, WorkerId};
use skein_proto::message::{Phase, StageAt};
use skein_proto::node::Allowance;
use skein_tests::model::Broken;
use skein_tests::sim::{Faults, World};

use super::{PATIENCE_MS, coordinator, done, every_seed};

fn holds(well: bool, otherwise: impl FnOnce() -> String) -> Result<(), Broken> {
    if well { Ok(()) } else { Err(otherwise()) }
}

/// Lets the job come to its end; how many workers and agents were at it at most.
fn to_the_end(world: &mut World, job: JobId) -> Result<(u16, u16), Broken> {
    let mut most = (0, 0);
    world.run_until(PATIENCE_MS, "the end", |world| {
        let Some(status) = world.status(job) else { return false };
        most = most.max((status.workers, status.agents));
        status.phase.is_final()
    })?;
    world.settle(PATIENCE_MS)?;
    done(world, job)?;
    Ok(most)
}

#[test]
fn every_gpu_of_a_rig_works_beside_a_plain_agent() {
    every_seed("rigs::every_gpu_of_a_rig_works_beside_a_plain_agent", |seed, told| {
        let mut world = World::with_workers(seed, &[4, 1], Faults::NONE, told);
        coordinator(&mut world)?;
        let owner = usize::try_from(seed % 2).map_err(|error| error.to_string())?;
        let job = world.train(owner, 6)?;
        let most = to_the_end(&mut world, job)?;
        holds(most == (5, 2), || format!("(workers, agents) at work: {most:?}"))?;
        for (host, worker) in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)] {
            // No slice was lost, so each trained one in each round.
            let slices = world.deeds(host, worker).slices;
            holds(slices == 6, || format!("worker {worker} of host {host} trained {slices} slices"))?;
        }
        let regrants = world.status(job).map_or(0, |status| status.regrants);
        holds(regrants == 0, || format!("{regrants} shards were granted again"))
    });
}

#[test]
fn a_gpu_that_fails_everything_stops_neither_its_siblings_nor_the_job() {
    every_seed("rigs::a_gpu_that_fails_everything_stops_neither_its_siblings_nor_the_job", |seed, told| {
        // The rig alone, or with others; the broken one is often that which would do what an agent does once.
        let crew: &[u8] = if seed % 2 == 0 { &[4] } else { &[4, 1, 2] };
        let mut world = World::with_workers(seed, crew, Faults::NONE, told);
        let broken = u8::try_from(seed / 2 % 4).map_err(|error| error.to_string())?;
        world.break_worker(0, broken);
        coordinator(&mut world)?;
        let job = world.train(0, 16)?;
        to_the_end(&mut world, job)?;
        let deeds = world.deeds(0, broken);
        // Of sixteen rounds it fails the first, and then it is tried after one, two, four and eight more.
        let slices = deeds.begun.keys().filter(|what| what.contains("slice")).count();
        let tried = (1..=5).contains(&slices);
        holds(deeds.completed == 0 && tried, || format!("the broken one: {deeds:?}"))?;
        let again = deeds.begun.iter().find(|(_, times)| **times > 1);
        holds(again.is_none(), || format!("what it failed it was given again: {again:?}"))?;
        for worker in (0..4).filter(|worker| *worker != broken) {
            let slices = world.deeds(0, worker).slices;
            holds(slices >= 16, || format!("worker {worker} trained {slices} slices"))?;
        }
        let status = world.status(job).ok_or("no status")?;
        holds(status.refused.is_empty(), || format!("refused: {:?}", status.refused))
    });
}

#[test]
fn an_owner_who_needs_one_gpu_again_and_again_stops_only_that() {
    every_seed("rigs::an_owner_who_needs_one_gpu_again_and_again_stops_only_that", |seed, told| {
        let crew: &[u8] = if seed % 3 == 0 { &[4] } else { &[4, 1] };
        let mut world = World::with_workers(seed, crew, Faults::NONE, told);
        coordinator(&mut world)?;
        let owner = usize::try_from(seed).map_err(|error| error.to_string())? % crew.len();
        let job = world.train(owner, 8)?;
        // Now and then it is the worker that would do what an agent does once.
        let needed = u8::from(seed % 4 != 0);
        world.run_until(PATIENCE_MS, "the worker at work", |world| {
            let deeds = world.deeds(0, needed);
            deeds.begun.values().sum::<u32>() > deeds.completed
        })?;
        for turn in 0..200 {
            let allowance = if turn % 2 == 0 { Allowance::Nothing } else { Allowance::Work };
            world.allow_worker(0, needed, allowance)?;
            world.run_for(200 + (seed * 31 + turn * 17) % 9 * 140)?;
            if world.status(job).is_some_and(|status| status.phase.is_final()) {
                break;
            }
        }
        world.allow_worker(0, needed, Allowance::Work)?;
        to_the_end(&mut world, job)?;
        let stopped = world.deeds(0, needed).stopped;
        holds(stopped > 0, || "the owner never interrupted anything".into())?;
        for worker in (0..4).filter(|worker| *worker != needed) {
            let deeds = world.deeds(0, worker);
            holds(deeds.slices >= 8 && deeds.stopped == 0, || format!("worker {worker}: {deeds:?}"))?;
        }
        let status = world.status(job).ok_or("no status")?;
        let blamed = !status.refused.is_empty() || status.rejected > 0;
        holds(!blamed, || format!("{} rejected, refused {:?}", status.rejected, status.refused))
    });
}

/// Owners who need single workers again and again, of some rigs and plain agents.
fn owners_of_rigs(
    seed: u64,
    told: bool,
    job: fn(&mut World, usize) -> Result<JobId, Broken>,
) -> Result<(), Broken> {
    let mut world = World::with_workers(seed, &[3, 1, 4, 1], Faults::NONE, told);
    let first = coordinator(&mut world)?;
    let owner = world.bystander(&[first]).unwrap_or(first);
    let id = job(&mut world, owner)?;
    for turn in 0..30 {
        world.run_for(100 + (seed * 31 + turn * 17) % 9 * 170)?;
        let host = usize::try_from((seed + turn * 3) % 4).map_err(|error| error.to_string())?;
        let worker = u8::try_from((seed / 4 + turn) % u64::from(world.workers(host))).unwrap_or(0);
        let allowance = match (seed / 5 + turn) % 4 {
            0 => Allowance::Finish,
            1 | 2 => Allowance::Nothing,
            _ => Allowance::Work,
        };
        world.allow_worker(host, worker, allowance)?;
    }
    for host in 0..4 {
        world.allow(host, Allowance::Work)?;
    }
    world.settle(PATIENCE_MS)?;
    match world.status(id).map(|status| &status.phase) {
        Some(Phase::Failed { reason }) => Err(format!("to need a GPU is no failure, yet: {reason}")),
        _ => Ok(()),
    }
}

#[test]
fn owners_need_single_gpus_while_training() {
    every_seed("rigs::owners_need_single_gpus_while_training", |seed, told| {
        owners_of_rigs(seed, told, |world, owner| world.train(owner, 6))
    });
}

#[test]
fn owners_need_single_gpus_while_serving() {
    every_seed("rigs::owners_need_single_gpus_while_serving", |seed, told| {
        owners_of_rigs(seed, told, |world, owner| world.serve(owner, 3))
    });
}

#[test]
fn owners_need_single_gpus_while_groups_train() {
    every_seed("rigs::owners_need_single_gpus_while_groups_train", |seed, told| {
        owners_of_rigs(seed, told, |world, owner| world.train_large(owner, 4))
    });
}

#[test]
fn rigs_train_through_faults_and_a_split() {
    every_seed("rigs::rigs_train_through_faults_and_a_split", |seed, told| {
        let faults = Faults { latency_ms_max: 400, flaps_per_mille: 15, failures_per_mille: 10 };
        let mut world = World::with_workers(seed, &[3, 1, 2, 1, 4, 1], faults, told);
        world.run_for(3_000)?;
        let jobs = [world.train(0, 6)?, world.train_large(5, 3)?];
        world.run_for(20_000)?;
        world.split(&[0, usize::try_from(1 + seed % 5).map_err(|error| error.to_string())?]);
        world.run_for(500 + seed * 1_297 % 20_000)?;
        world.heal();
        world.settle(PATIENCE_MS)?;
        jobs.into_iter().try_for_each(|job| done(&world, job))
    });
}

#[test]
fn a_rig_of_which_no_gpu_holds_the_model_trains_it_as_a_group() {
    every_seed("rigs::a_rig_of_which_no_gpu_holds_the_model_trains_it_as_a_group", |seed, told| {
        let mut world = World::with_workers(seed, &[4, 1], Faults::NONE, told);
        world.run_for(2_000)?;
        // The owner has not the memory for any part of it.
        world.refit(1, 1, 1 << 20)?;
        coordinator(&mut world)?;
        let job = world.train_large(1, 4)?;
        to_the_end(&mut world, job)?;
        for worker in 0..4 {
            let deeds = world.deeds(0, worker);
            holds(deeds.slices == 4, || format!("worker {worker} did {deeds:?}"))?;
            let alone = deeds.begun.keys().find(|what| what.contains("slice") && !what.contains("member"));
            holds(alone.is_none(), || format!("worker {worker} alone: {alone:?}"))?;
        }
        let regrants = world.status(job).map_or(0, |status| status.regrants);
        holds(regrants == 0, || format!("{regrants} shards were granted again"))
    });
}

#[test]
fn groups_form_without_a_gpu_that_fails_everything() {
    every_seed("rigs::groups_form_without_a_gpu_that_fails_everything", |seed, told| {
        let mut world = World::with_workers(seed, &[6, 1], Faults::NONE, told);
        world.run_for(2_000)?;
        world.refit(1, 1, 1 << 20)?;
        let broken = u8::try_from(seed % 6).map_err(|error| error.to_string())?;
        world.break_worker(0, broken);
        coordinator(&mut world)?;
        let job = world.train_large(1, 16)?;
        to_the_end(&mut world, job)?;
        let deeds = world.deeds(0, broken);
        let slices = deeds.begun.keys().filter(|what| what.contains("slice")).count();
        holds(deeds.completed == 0 && (1..=5).contains(&slices), || format!("the broken one: {deeds:?}"))
    });
}

/// A pipeline over three workers of the one machine that has memory, which is neither the coordinator nor the owner.
fn serve_on_a_rig(world: &mut World) -> Result<(JobId, usize, usize), Broken> {
    let first = coordinator(world)?;
    let rig = world.bystander(&[first]).ok_or("nobody")?;
    let owner = world.bystander(&[first, rig]).ok_or("nobody")?;
    for host in world.alive() {
        // Two layers with an end, or not even one.
        if host == rig { world.refit(host, 4, 6_000_000)? } else { world.refit(host, 1, 1 << 20)? }
    }
    world.run_for(1_000)?;
    let job = world.serve(owner, 3)?;
    world.settle(PATIENCE_MS)?;
    Ok((job, rig, first))
}

fn on_distinct_workers(world: &World, rig: usize, stages: &[StageAt]) -> Result<(), Broken> {
    let workers: BTreeSet<WorkerId> = stages.iter().map(StageAt::worker_id).collect();
    let there = workers.iter().all(|worker| worker.node == world.agent(rig) && worker.index < 4);
    holds(workers.len() == 3 && stages.len() == 3 && there, || format!("{stages:?}"))
}

#[test]
fn a_pipeline_over_a_rigs_gpus_keeps_its_seats_under_another_coordinator() {
    every_seed(
        "rigs::a_pipeline_over_a_rigs_gpus_keeps_its_seats_under_another_coordinator",
        |seed, told| {
            let mut world = World::new(seed, 4, Faults::NONE, told);
            let (job, rig, first) = serve_on_a_rig(&mut world)?;
            // Stages move away from the seats in which a new coordinator would put them.
            world.allow_worker(rig, u8::try_from(seed % 3).unwrap_or(0), Allowance::Nothing)?;
            world.settle(PATIENCE_MS)?;
            world.allow_worker(rig, u8::try_from(seed % 3).unwrap_or(0), Allowance::Work)?;
            world.settle(PATIENCE_MS)?;
            let before = world.stages(job);
            on_distinct_workers(&world, rig, &before)?;
            world.crash(first);
            world.run_until(PATIENCE_MS, "another coordinator", |world| {
                world.coordinator().is_some_and(|host| host != first)
            })?;
            world.settle(PATIENCE_MS)?;
            let after = world.stages(job);
            on_distinct_workers(&world, rig, &after)?;
            let seats = |stages: &[StageAt]| -> Vec<(WorkerId, u16, u16)> {
                stages.iter().map(|stage| (stage.worker_id(), stage.start, stage.end)).collect()
            };
            holds(seats(&before) == seats(&after), || format!("{before:?} became {after:?}"))?;
            holds(before.iter().zip(&after).all(|(before, after)| before.lease != after.lease), || {
                "the leases of the one before are in force".into()
            })
        },
    );
}

#[test]
fn a_gpu_that_fails_is_replaced_by_its_sibling_in_a_pipeline() {
    every_seed("rigs::a_gpu_that_fails_is_replaced_by_its_sibling_in_a_pipeline", |seed, told| {
        let mut world = World::new(seed, 4, Faults::NONE, told);
        let (job, rig, _) = serve_on_a_rig(&mut world)?;
        let before = world.stages(job);
        let lost = before[usize::try_from(seed % 3).unwrap_or(0)];
        world.break_worker(rig, lost.worker);
        world.allow_worker(rig, lost.worker, Allowance::Nothing)?;
        world.allow_worker(rig, lost.worker, Allowance::Work)?;
        world.settle(PATIENCE_MS)?;
        let after = world.stages(job);
        on_distinct_workers(&world, rig, &after)?;
        holds(after.iter().all(|stage| stage.worker != lost.worker), || format!("{lost:?} in {after:?}"))?;
        let kept = before.iter().zip(&after).filter(|(before, after)| before.lease == after.lease);
        let kept = kept.count();
        holds(kept == 2, || format!("{kept} of two other stages stayed"))
    });
}

#[test]
fn a_gpu_is_no_witness_for_its_sibling() {
    every_seed("rigs::a_gpu_is_no_witness_for_its_sibling", |seed, told| {
        // That no host checks what it made is held against every step.
        let mut world = World::with_workers(seed, &[4], Faults::NONE, told);
        coordinator(&mut world)?;
        let job = world.train_checked(0, 4)?;
        to_the_end(&mut world, job)?;
        let status = world.status(job).ok_or("no status")?;
        holds(status.confirmed == 0, || format!("{} were confirmed by siblings", status.confirmed))?;
        let mut world = World::with_workers(seed, &[4, 2, 1], Faults::NONE, told);
        coordinator(&mut world)?;
        let job = world.train_checked(usize::try_from(seed % 3).unwrap_or(0), 4)?;
        to_the_end(&mut world, job)?;
        let status = world.status(job).ok_or("no status")?;
        let (confirmed, rejected) = (status.confirmed, status.rejected);
        holds(confirmed > 10 && rejected == 0, || format!("{confirmed} confirmed, {rejected} rejected"))
    });
}
